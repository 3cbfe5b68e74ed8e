"""Feature maps of classes that no training picture shows, synthesised from the encoder's own classifier.

A linear classifier trained on features with covariance S has, for class c, a weight w_c close to S^-1 (m_c - m): so the
class mean lies along S w_c (linear discriminant analysis). Moving some cells of a real background's feature map along
that direction until the classifier is as sure as it is on photographs gives a feature map "with a c in it". It carries
what the encoder knows of its 1000 classes to the projector, without any picture of them.
"""

from __future__ import annotations

import numpy as np

Rng = np.random.Generator


class ClassFeatures:
    """Writes classes into feature maps.

    Args:
        weight: classifier weight [classes, dim].
        samples: real features [n, dim] to take the covariance from; a few thousand cells.
        ceiling: largest feature value (6 after ReLU6).
        keep: features that a class may raise.
    """

    def __init__(self, weight: np.ndarray, samples: np.ndarray, ceiling: float = 6.0, keep: int = 160) -> None:
        samples = samples.astype(np.float32)
        centred = samples - samples.mean(0)
        covariance = centred.T @ centred / len(samples)
        self.weight = weight
        push = np.maximum(weight @ covariance, 0.0)
        # features are sparse after ReLU6 (about one in nine is not zero): keep only what the class pushes most
        keep = min(keep, push.shape[1])
        floor = np.partition(push, -keep, axis=1)[:, -keep][:, None]
        self.push = np.where(push >= floor, push, 0.0).astype(np.float32)
        self.ceiling = ceiling

    def direction(self, index: int, rng: Rng) -> np.ndarray:
        """A sample of what the class adds to a cell, scaled so that its logit rises by 1: [dim]."""
        push = self.push[index]
        varied = push * np.exp(rng.normal(0, 0.7, push.shape)) * (rng.random(push.shape) < 0.75)
        rise = float(varied @ self.weight[index])
        if rise < 0.25 * float(push @ self.weight[index]):
            varied, rise = push, float(push @ self.weight[index])
        return (varied / max(rise, 1e-6)).astype(np.float32)

    def write(
        self,
        features: np.ndarray,
        grid: tuple[int, int],
        classes: tuple[int, ...],
        places: list[tuple[float, float, float]],
        rng: Rng,
    ) -> np.ndarray:
        """Features [h*w, dim] with an object of each class at its place (x, y, size as fractions of the picture)."""
        h, w = grid
        ys, xs = np.mgrid[0:h, 0:w]
        out = features.astype(np.float32)
        for index, (x, y, size) in zip(classes, places):
            stretch = float(np.exp(rng.normal(0, 0.25)))
            dx = ((xs + 0.5) / w - x) / (0.5 * size * stretch)
            dy = ((ys + 0.5) / h - y) / (0.5 * size / stretch)
            inside = 1.0 / (1.0 + np.exp(6.0 * (np.sqrt(dx**2 + dy**2) - 1.0)))
            strength = rng.uniform(7.0, 26.0) * inside * rng.uniform(0.6, 1.2, inside.shape)
            keep = 1.0 - 0.6 * inside  # the object hides what was there
            out = out * keep.reshape(-1, 1) + strength.reshape(-1, 1).astype(np.float32) * self.direction(index, rng)
        return np.clip(out, 0.0, self.ceiling).astype(np.float32)
