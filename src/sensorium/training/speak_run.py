"""`sensorium train` with a recipe of kind `speak`: from the recipe to a composition that speaks, top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.backbones.threads import physical_cores
from sensorium.composition import Composition
from sensorium.errors import SensoriumError
from sensorium.evaluation.speech_metrics import error_rate
from sensorium.generators import create
from sensorium.hub.progress import say
from sensorium.model import Model
from sensorium.projectors.output import filled, torch_class
from sensorium.prompt import TEMPLATES
from sensorium.seams import BACKBONE, GENERATOR
from sensorium.training import checkpoint
from sensorium.training.backbone import digest_frozen
from sensorium.training.inherit import write_beside
from sensorium.training.loop import train_loop
from sensorium.training.objectives.ctc import greedy_units
from sensorium.training.output import ended_before, running
from sensorium.training.overrides import read
from sensorium.training.processes import StopRequest
from sensorium.training.speak_export import export_output
from sensorium.training.speak_recipe import SpeakRecipe
from sensorium.training.speak_task import SpeakTask, frames_of, logits_of
from sensorium.training.speak_texts import Corpora, Corpus


def read_recipe(recipe: Path, overrides: Sequence[str] = ()) -> SpeakRecipe:
    """Read and validate a recipe of kind `speak`; raises UsageError with the line and the reason."""
    return read(recipe, SpeakRecipe, overrides)


def train_speak(recipe: Path | SpeakRecipe, overrides: Sequence[str] = (), resume: Path | None = None) -> Path:
    """Run a recipe and return the directory of a composition that speaks.

    Raises:
        UsageError: the recipe or the call is wrong.
        SensoriumError: a part, a text package, a checkpoint or the machine is at fault.
        KeyboardInterrupt: the run was interrupted; a checkpoint was written if a step had been taken.
    """
    plan = recipe if isinstance(recipe, SpeakRecipe) else read_recipe(recipe, overrides)
    file = recipe if isinstance(recipe, Path) else None
    base = Composition.find(plan.composition)
    with running(plan, file, overrides, resume, [checkpoint.FILE]) as output:
        _run(plan, base, output, resume is not None)
    return output / "composition"


def _run(plan: SpeakRecipe, base: Composition, output: Path, resume: bool) -> None:
    """Load the frozen parts, make the texts, train and write."""
    torch.set_num_threads(physical_cores())
    torch.manual_seed(plan.train.seed)
    model = Model(base).load()
    generator = create(plan.generator)
    spec, tokenizer = model.parts.backbone.get(), model.parts.tokenizer.get()
    end = tokenizer.special(TEMPLATES[model.composition.spec.backbone.template].end)
    table = torch.from_numpy(np.asarray(model.parts.bare.get().embed(range(spec.vocab)))).half()
    made = Corpora(model, generator, say)
    corpora: dict[str, Corpus] = {
        name: _corpus(made, name, plan.data.sources[name].texts, plan.data.seed) for name in plan.data.sources
    }
    unseen = {
        "fortunes": made.sentences("fortunes", plan.data.held_out, plan.data.seed),
        "answers": made.answers(plan.data.held_out, plan.data.seed, held_out=True),
    }
    weights: dict[str, float] = {name: source.weight for name, source in plan.data.sources.items()}
    options = filled(plan.projector.kind, plan.projector.options)
    projector = torch_class(plan.projector.kind)(spec.dim, len(generator.units), **options)
    task = SpeakTask(
        projector, table, corpora, weights, end, plan.data.state_dropout, plan.train, tokenizer.decode, generator.space
    )
    facts: dict[str, Any] = {
        "projector": {"kind": plan.projector.kind, **options},
        BACKBONE: spec.fingerprint,
        GENERATOR: generator.units.fingerprint,
        "texts": {name: len(corpus) for name, corpus in corpora.items()},
        "train.seed": plan.train.seed,
    }
    learnt = sum(parameter.numel() for parameter in projector.parameters())
    say(f"Training {plan.name}: {learnt / 1e6:.1f} M parameters, texts {facts['texts']}")
    say(
        f"Units per token: {_slack([*corpora.values(), *unseen.values()])} (median, 99th and 99.9th percentile, most); "
        f"slots {projector.upsample}"
    )

    def report(p: Any) -> None:
        say(f"step {p.step:5d}/{p.steps}  loss {p.loss:.4f}  {p.tokens_per_s:.0f} tokens/s  {p.minutes:.1f} min")

    def write(step: int) -> None:
        rates = {name: measure(projector, table, corpus, end, tokenizer.decode) for name, corpus in unseen.items()}
        say("  ".join(f"{name}: {rate}" for name, rate in rates.items()))
        _write(output / "composition", plan, model, generator, projector, {"steps": step}, rates)

    frozen = digest_frozen(projector)
    begun = checkpoint.check(output, facts) if resume else 0
    with StopRequest() as stopping:
        steps = train_loop(
            task,
            plan.train,
            output,
            resume=resume,
            facts=facts,
            stopping=stopping,
            report=report,
            snapshot=write,
        )
    if digest_frozen(projector) != frozen:
        raise SensoriumError("What the projector holds frozen changed; this is a bug, please report it.")
    if begun == steps:
        say(ended_before(output, steps))
    write(steps)
    say(f"Trained composition: {output / 'composition'}")


def _corpus(made: Corpora, name: str, number: int, seed: int) -> Corpus:
    if name == "phrases":
        return made.phrases(number, seed)
    return made.answers(number, seed) if name == "answers" else made.sentences(name, number, seed)


def _slack(corpora: Sequence[Corpus]) -> str:
    sizes = np.concatenate([np.diff(corpus.starts, axis=0) for corpus in corpora if len(corpus)])
    return " ".join(f"{value:.1f}" for value in np.percentile(sizes[:, 1] / sizes[:, 0], [50, 99, 99.9, 100]))


@torch.no_grad()
def measure(
    projector: Any, table: Tensor, corpus: Corpus, end: int, decode: Callable[[list[int]], str], rows: int = 16
) -> dict[str, float]:
    """Phoneme error rate of a corpus: with the states it holds, and without any ("blind")."""
    result = {}
    for name in ("with", "blind") if corpus.states is not None else ("blind",):
        pairs = []
        for i in range(0, len(corpus), rows):
            texts = [corpus.text(j) for j in range(i, min(i + rows, len(corpus)))]
            texts = [(ids, units, states if name == "with" else None) for ids, units, states in texts]
            frames = frames_of(texts, end, projector, decode)
            logits = logits_of(projector, table, frames)
            for row, (_, units, _) in enumerate(texts):
                said = greedy_units(logits[row, : int(frames.lengths[row]) * projector.upsample])
                pairs.append((units.tolist(), said))
        result[name] = round(error_rate(pairs), 4)
    return result


def _write(
    directory: Path, plan: SpeakRecipe, model: Model, generator: Any, projector: Any, run: Any, rates: Any
) -> None:
    """The base composition with the output projector beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    export_output(projector, directory, "speech")
    files = {"weights": "speech.safetensors", "onnx": "speech.onnx"}
    ours = {"kind": plan.projector.kind, "generator": "speech", **files, "options": dict(plan.projector.options)}
    write_beside(
        model.composition,
        directory,
        files.values(),
        {"generators": {"speech": {"kind": plan.generator}}, "output_projectors": {"speech": ours}},
        {BACKBONE: model.parts.backbone.get().fingerprint, GENERATOR: generator.units.fingerprint},
        {"speech": {"recipe": plan.model_dump(mode="json"), "run": run, "phoneme_error_rate": rates}},
    )
