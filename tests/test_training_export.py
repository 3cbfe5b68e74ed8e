"""The ONNX twin: the torch module's numbers, with its weights read from the safetensors file beside it."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402

from sensorium.projectors.concept import ConceptProjector  # noqa: E402
from sensorium.projectors.mlp import MLPProjector  # noqa: E402
from sensorium.projectors.resampler import ResamplerProjector  # noqa: E402
from sensorium.projectors.runtime import Projector  # noqa: E402
from sensorium.training.export import export_projector, save_tensors, tensor_offsets  # noqa: E402

GRID, DIM, OUT = (4, 4), 24, 40


def projectors():
    torch.manual_seed(0)
    directions = (np.random.default_rng(0).normal(size=(30, DIM)).astype(np.float32), np.zeros(30, np.float32))
    words = np.random.default_rng(1).normal(size=(30, OUT)).astype(np.float32)
    return {
        "mlp": MLPProjector(DIM, OUT, GRID, pool=2, hidden=50),
        "mlp unpooled": MLPProjector(DIM, OUT, GRID),
        "concept": ConceptProjector(DIM, OUT, GRID, pool=2, hidden=20, directions=directions, words=words),
        "concept with learnt words": ConceptProjector(
            DIM, OUT, GRID, pool=2, hidden=20, directions=directions, words=words, learnt=9
        ),
        "resampler": ResamplerProjector(DIM, OUT, GRID, queries=5, depth=2, width=12, heads=3),
        "concept random": ConceptProjector(DIM, OUT, GRID, pool=4, hidden=20, concepts=30),
    }


@pytest.mark.parametrize("kind", list(projectors()))
def test_the_twin_equals_the_module(tmp_path, kind):
    module = projectors()[kind]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
            parameter.copy_(parameter.half().float())  # what float16 keeps, so that the comparison is exact
    module.train()
    export_projector(module, GRID[0] * GRID[1], DIM, tmp_path)
    assert module.training
    features = np.random.default_rng(2).normal(size=(3, GRID[0] * GRID[1], DIM)).astype(np.float32)
    with torch.no_grad():
        ours = module(torch.from_numpy(features)).numpy()
    twin = Projector(tmp_path / "image.onnx", threads=1)
    assert (twin.tokens, twin.dim, twin.cells, twin.feature_dim) == (*ours.shape[1:], GRID[0] * GRID[1], DIM)
    np.testing.assert_allclose(twin(features), ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "concept", "resampler"])
def test_the_twin_holds_no_weights_of_its_own(tmp_path, kind):
    module = projectors()[kind]
    export_projector(module, GRID[0] * GRID[1], DIM, tmp_path)
    model = onnx.load(str(tmp_path / "image.onnx"), load_external_data=False)
    offsets = tensor_offsets(tmp_path / "image.safetensors")
    assert set(offsets) == set(module.state_dict())
    outside = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data}
    assert {name.removesuffix(".f16") for name in outside} == set(offsets)
    for name, where in outside.items():
        start, length, _ = offsets[name.removesuffix(".f16")]
        assert where == {"location": "image.safetensors", "offset": str(start), "length": str(length)}
    kept = sum(int(np.prod(t.dims)) for t in model.graph.initializer if not t.external_data)
    assert kept < 200 and (tmp_path / "image.onnx").stat().st_size < 40_000


def test_changing_the_safetensors_changes_the_twin(tmp_path):
    module = projectors()["mlp"]
    export_projector(module, GRID[0] * GRID[1], DIM, tmp_path)
    features = np.ones((1, GRID[0] * GRID[1], DIM), np.float32)
    before = Projector(tmp_path / "image.onnx", threads=1)(features)
    with torch.no_grad():
        module.down.bias.add_(1.0)
    save_tensors(dict(module.state_dict()), tmp_path / "image.safetensors")
    after = Projector(tmp_path / "image.onnx", threads=1)(features)
    np.testing.assert_allclose(after, before + 1.0, atol=5e-3)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_tensor_that_the_graph_drops_is_an_error(tmp_path):
    module = projectors()["mlp"]
    module.unused = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="does not use unused"):
        export_projector(module, GRID[0] * GRID[1], DIM, tmp_path)
