"""Classes written into feature maps: near their place the classifier sees them, elsewhere nothing changes."""

from __future__ import annotations

import numpy as np
import pytest

from sensorium.training.class_features import ClassFeatures

DIM, CLASSES, GRID = 96, 12, (8, 8)


@pytest.fixture(scope="module")
def world():
    """Sparse features of known classes, and the linear classifier (LDA) that such features have."""
    random = np.random.default_rng(0)
    means = np.where(random.random((CLASSES, DIM)) < 0.15, random.uniform(1, 4, (CLASSES, DIM)), 0.0)
    labels = random.integers(0, CLASSES, 6000)
    cells = np.clip(means[labels] * random.uniform(0.5, 1.2, (6000, 1)) + random.normal(-0.6, 0.8, (6000, DIM)), 0, 6)
    averages = np.stack([cells[labels == c].mean(0) for c in range(CLASSES)])
    within = np.cov((cells - averages[labels]).T) + 0.05 * np.eye(DIM)
    weight = (np.linalg.solve(within, (averages - cells.mean(0)).T)).T
    ground = np.clip(random.normal(-0.6, 0.8, (GRID[0] * GRID[1], DIM)), 0, 6).astype(np.float32)
    return ClassFeatures(weight.astype(np.float32), cells), weight, averages - cells.mean(0), ground


def cell(x, y):
    return int(y * GRID[0]) * GRID[1] + int(x * GRID[1])


def test_writing_a_class_raises_its_logit_most_of_all_at_its_place(world):
    classes, weight, _, ground = world
    seen = 0
    for index in range(CLASSES):
        rng = np.random.default_rng(index)
        out = classes.write(ground, GRID, (index,), [(0.3, 0.6, 0.5)], rng)
        rise = (out - ground)[cell(0.3, 0.6)] @ weight.T
        assert rise[index] > 4
        seen += int(np.argmax(rise) == index)
    assert seen >= CLASSES - 1


def test_far_cells_stay_as_they_are(world):
    classes, _, _, ground = world
    out = classes.write(ground, GRID, (3,), [(0.2, 0.2, 0.25)], np.random.default_rng(1))
    change = np.abs(out - ground).max(axis=1).reshape(GRID)
    assert change[5:, 5:].max() < 1e-3
    assert change[1, 1] > 0.5


def test_two_classes_stand_each_at_its_own_place(world):
    classes, weight, _, ground = world
    out = classes.write(ground, GRID, (1, 7), [(0.2, 0.5, 0.4), (0.8, 0.5, 0.4)], np.random.default_rng(2))
    logits = (out - ground) @ weight.T
    left, right = logits[cell(0.2, 0.5)], logits[cell(0.8, 0.5)]
    assert left[1] > left[7] + 3 and right[7] > right[1] + 3


def test_the_direction_points_to_where_the_class_is(world):
    """S w_c is the class's mean: closer to it than to any other class's."""
    classes, _, means, _ = world
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    for index in range(CLASSES):
        push = classes.direction(index, np.random.default_rng(index))
        likeness = unit @ (push / np.linalg.norm(push))
        assert np.argmax(likeness) == index


def test_values_stay_in_range_and_follow_the_seed(world):
    classes, _, _, ground = world
    places = [(0.5, 0.5, 1.5), (0.1, 0.9, 1.0)]
    one = classes.write(ground, GRID, (0, 5), places, np.random.default_rng(9))
    two = classes.write(ground, GRID, (0, 5), places, np.random.default_rng(9))
    other = classes.write(ground, GRID, (0, 5), places, np.random.default_rng(10))
    assert one.dtype == np.float32 and one.min() >= 0 and one.max() <= 6
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert np.array_equal(ground, world[3])  # the background is not written into


def test_narrow_features_are_taken_whole():
    random = np.random.default_rng(0)
    classes = ClassFeatures(random.normal(size=(4, 10)).astype(np.float32), random.random((50, 10)), keep=160)
    assert classes.push.shape == (4, 10)
