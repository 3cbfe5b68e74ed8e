"""The registry of projectors: every kind is made from its line alone, and keeps what its line says."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sensorium.composition import Composition  # noqa: E402
from sensorium.encoders.base import FeatureSpec, Grid, Sequence  # noqa: E402
from sensorium.errors import UsageError  # noqa: E402
from sensorium.projectors.resampler import ResamplerProjector  # noqa: E402
from sensorium.projectors.spec import KINDS, positions_for, tokens_for, torch_class  # noqa: E402

DIM, OUT, GRID = 12, 20, (4, 6)
SMALL = {
    "mlp": {"pool": 2},
    "concept": {"concepts": 9, "hidden": 8},
    "resampler": {"queries": 3, "width": 12},
    "stack": {"hidden": 8},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_kind_gives_the_tokens_that_its_line_says(kind):
    options = SMALL[kind]
    module = torch_class(kind)(DIM, OUT, GRID, **options)
    with torch.inference_mode():
        embeds = module(torch.randn(2, GRID[0] * GRID[1], DIM))
    along_time = KINDS[kind].positions is not None
    features = FeatureSpec(DIM, Sequence(), 50.0, "f") if along_time else FeatureSpec(DIM, Grid(*GRID), None, "f")
    count = positions_for(kind, options, GRID[0] * GRID[1]) if along_time else tokens_for(kind, options, features)
    assert embeds.shape == (2, count, OUT) and count >= tokens_for(kind, options, features)


@pytest.mark.parametrize("kind", list(KINDS))
def test_options_and_defaults_are_those_of_the_class(kind):
    parameters = inspect.signature(torch_class(kind)).parameters
    assert {name: parameters[name].default for name in KINDS[kind].options} == dict(KINDS[kind].options)


def test_the_modules_of_checkpoints_stand_where_they_stood():
    from sensorium.projectors.concept import ConceptProjector
    from sensorium.projectors.mlp import MLPProjector

    assert torch_class("concept") is ConceptProjector and torch_class("mlp") is MLPProjector


def test_the_packaged_checkpoint_loads():
    from safetensors.torch import load_file

    composition = Composition.find("mini")
    declared = composition.spec.projectors["image"]
    state = load_file(composition.file(declared.weights))
    options = {**declared.options, "concepts": len(state["keys.weight"])}
    dim, out = state["keys.weight"].shape[1], state["values"].shape[1]
    module = torch_class(declared.kind)(dim, out, (8, 8), **options)
    module.load_state_dict(state)


def test_a_resampler_knows_where_a_cell_lies_and_that_pictures_differ():
    torch.manual_seed(0)
    module = ResamplerProjector(DIM, OUT, GRID, queries=3, width=12, heads=3).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        features = torch.randn(2, 24, DIM)
        both = module(features)
        flipped = module(features.reshape(2, *GRID, DIM).flip(2).flatten(1, 2))
    assert not torch.allclose(both, flipped, atol=1e-3)
    assert not torch.allclose(both[0], both[1], atol=1e-3)
    np.testing.assert_allclose(module(features[:1])[0].detach(), both[0], atol=1e-5)


def test_a_resampler_learns():
    torch.manual_seed(0)
    module = ResamplerProjector(DIM, OUT, GRID, queries=3, depth=1, width=24, heads=3)
    features, wanted = torch.randn(4, 24, DIM), torch.randn(4, 3, OUT)
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = (module(features) - wanted).pow(2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UsageError, match="heads=5 does not divide width=384"):
        ResamplerProjector(DIM, OUT, GRID, heads=5)
