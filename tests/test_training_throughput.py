"""What makes a step cheap: no graph below what learns, no product for a frozen weight, work grouped by length."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

import tiny_llm

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from sensorium.backbones.gguf import GGUF  # noqa: E402
from sensorium.backbones.spec import spec_from_gguf  # noqa: E402
from sensorium.evaluation.items import Question  # noqa: E402
from sensorium.evaluation.subjects import BATCH, _Speaker  # noqa: E402
from sensorium.prompt import IGNORE  # noqa: E402
from sensorium.training.backbone import load_llama  # noqa: E402
from sensorium.training.compose_task import ComposeTask  # noqa: E402
from sensorium.training.data.formats.ahead import ahead  # noqa: E402
from sensorium.training.data.formats.encode import Encoded  # noqa: E402
from sensorium.training.data.formats.packing import pack as pack_documents  # noqa: E402
from sensorium.training.data.formats.sample import MediaRef  # noqa: E402
from sensorium.training.data.formats.task import PackedTask  # noqa: E402
from sensorium.training.recipe import LearningRate, LoraRecipe  # noqa: E402
from sensorium.training.rows import Branch, Layout, pack  # noqa: E402

CELLS, DIM, LENGTH = 3, 6, 23  # no product of theirs is a size of the backbone's


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_llm.write_gguf(tmp_path_factory.mktemp("throughput") / "model.gguf")


def backbone(file, lora=False):
    with GGUF(file) as gguf:
        return load_llama(gguf, spec_from_gguf(gguf), LoraRecipe(rank=3) if lora else None, torch.float32)


def task_and_batch(kind, llm):
    """A task and a batch of two pictures, as a stage on scenes or on files has them."""
    projector = torch.nn.Linear(DIM, tiny_llm.DIM)
    features = np.random.default_rng(0).normal(size=(2, CELLS, DIM)).astype(np.float32)
    if kind == "scenes":
        rows = pack(Layout((1, 2), CELLS), [[Branch((5, 6, 7), (IGNORE, 6, 7))], [Branch((8, 9), (IGNORE, 9))]], LENGTH)
        return ComposeTask(projector, llm, None, LearningRate(projector=0.1)), (features, rows, None)
    ids, labels = np.array([1, 0, 0, 0, 5, 6]), np.array([*[IGNORE] * 5, 6])
    samples = [Encoded(name, ids, labels, ((1, 1 + CELLS),), (MediaRef(name),)) for name in "ab"]
    return PackedTask(projector, llm, None, LearningRate(projector=0.1)), (features, pack_documents([samples], LENGTH))


def leaves(loss):
    """Every tensor that a backward from ``loss`` would give a gradient to."""
    found, seen, ahead_of = {}, set(), [loss.grad_fn]
    while ahead_of:
        node = ahead_of.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                found[id(node.variable)] = node.variable
            ahead_of += [following for following, _ in node.next_functions]
    return found


class Products(TorchDispatchMode):
    """Notes the shape of every matrix product."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.shapes.append(tuple(out.shape[-2:]))
        return out


@pytest.mark.parametrize("kind", ["scenes", "files"])
@pytest.mark.parametrize("lora", [False, True], ids=["projector", "lora"])
def test_a_backward_ends_at_what_learns_and_multiplies_for_nothing_else(file, kind, lora):
    llm = backbone(file, lora)
    task, batch = task_and_batch(kind, llm)
    assert not llm.embed(torch.arange(4)).requires_grad
    loss = task.loss(batch).mean
    learnt = task.tensors()
    assert {id(t) for t in learnt.values()} == set(leaves(loss))
    with Products() as products:
        loss.backward()
    weights = {tuple(p.shape) for p in llm.parameters() if not p.requires_grad and p.ndim == 2}
    frozen = {*weights, *((b, a) for a, b in weights)} - {(t.shape[0], t.shape[-1]) for t in learnt.values()}
    assert products.shapes and not frozen & set(products.shapes)
    assert all(p.grad is None for p in llm.parameters() if not p.requires_grad)
    assert all(t.grad is not None for t in learnt.values())


def test_below_the_first_part_that_learns_there_is_no_graph(file):
    """A stage that trains only what is above: the blocks below keep nothing for a backward."""
    llm = backbone(file, lora=True)
    last = len(llm.blocks) - 1
    for name, parameter in llm.named_parameters():
        parameter.requires_grad_(name.startswith(f"blocks.{last}.") and ".lora_" in name)
    task, batch = task_and_batch("scenes", llm)
    task.projector.requires_grad_(False)
    entered = []
    for block in llm.blocks:
        block.register_forward_pre_hook(lambda _, args: entered.append(args[0].requires_grad))
        block.register_forward_hook(lambda _, __, out: entered.append(out.requires_grad))
    loss = task.loss(batch).mean
    assert entered == [False] * (2 * last + 1) + [True]
    assert set(leaves(loss)) == {id(p) for p in llm.blocks[last].parameters() if p.requires_grad}


def test_batches_are_made_while_a_step_runs():
    made = []

    def batches():
        for i in range(6):
            made.append(i)
            yield i

    taken = ahead(batches(), 3)
    assert next(taken) == 0
    for _ in range(200):
        if len(made) >= 5:  # one taken, three ready, one in hand
            break
        time.sleep(0.01)
    assert made == [0, 1, 2, 3, 4]
    assert list(taken) == [1, 2, 3, 4, 5]


def test_answers_are_generated_in_batches_of_like_length():
    class Speaker(_Speaker):
        def __init__(self):
            self.batches = []

        def prompt(self, image, text):
            return SimpleNamespace(prompt_length=len), list(text)

        def _speak(self, prompts, limit, yes_no):
            self.batches.append([len(prompt) for _, prompt in prompts])
            return ["".join(prompt) for _, prompt in prompts]

    lengths = np.random.default_rng(0).permutation(40) + 1
    asked = [Question("what", None, "x" * n, (), True) for n in lengths]
    speaker = Speaker()
    assert speaker.examine(asked) == ["x" * n for n in lengths]  # each its own answer
    assert [len(batch) for batch in speaker.batches] == [BATCH, BATCH, 40 - 2 * BATCH]
    assert [length for batch in speaker.batches for length in batch] == sorted(lengths)
