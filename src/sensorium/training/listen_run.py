"""`sensorium train` with a recipe of kind `listen`: from the recipe to a composition that listens, top to bottom."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from sensorium import generators, hub
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.spec import spec_from_gguf
from sensorium.backbones.threads import physical_cores
from sensorium.composition import Composition
from sensorium.encoders.whisper import WhisperEncoder
from sensorium.encoders.whisper_parts import PARTS
from sensorium.errors import SensoriumError, UsageError
from sensorium.hub.progress import say
from sensorium.model import Model
from sensorium.projectors.spec import find, torch_class
from sensorium.seams import BACKBONE
from sensorium.training import checkpoint
from sensorium.training.backbone import digest_frozen, load_llama
from sensorium.training.data.spoken_questions import repeats_a_test
from sensorium.training.inherit import write_beside
from sensorium.training.listen_answers import Answers, answered
from sensorium.training.listen_export import export_listen
from sensorium.training.listen_heard import Heard
from sensorium.training.listen_measure import ListenTest, share
from sensorium.training.listen_prompt import ListenPrompt
from sensorium.training.listen_recipe import RANDOM, ListenRecipe
from sensorium.training.listen_start import start_from, startable
from sensorium.training.listen_store import ListenStore, Utterance
from sensorium.training.listen_task import AlignTask, DistilTask
from sensorium.training.listen_words import Pronunciation, Sounds, WordKeys, pieces
from sensorium.training.loop import train_loop
from sensorium.training.objectives.align import TokenRows
from sensorium.training.output import running
from sensorium.training.overrides import read
from sensorium.training.processes import StopRequest

STAGES = ("align", "distil")
BLANK = "\n"  # what the LLM reads over between words
FEW = 160  # spoken questions at a checkpoint


def read_recipe(recipe: Path, overrides: Sequence[str] = ()) -> ListenRecipe:
    """Read and validate a recipe of kind `listen`; raises UsageError with the line and the reason."""
    return read(recipe, ListenRecipe, overrides)


def train_listen(recipe: Path | ListenRecipe, overrides: Sequence[str] = (), resume: Path | None = None) -> Path:
    """Run a recipe and return the directory of a composition that listens.

    Raises:
        UsageError: the recipe or the call is wrong.
        SensoriumError: a part, a voice, a checkpoint or the machine is at fault.
        KeyboardInterrupt: the run was interrupted; a checkpoint was written if a step had been taken.
    """
    plan = recipe if isinstance(recipe, ListenRecipe) else read_recipe(recipe, overrides)
    file = recipe if isinstance(recipe, Path) else None
    checkpoints = [f"{stage}/{checkpoint.FILE}" for stage in STAGES]
    base = Composition.find(plan.composition)
    if base.spec.backbone.format != "gguf":
        raise UsageError(f"{base.path} has no backbone in a GGUF file, which training to listen needs; name another.")
    start = None if plan.projector.start == RANDOM else Composition.find(plan.projector.start)
    if start is not None:
        startable(base, start, find(plan.projector.kind).filled(plan.projector.options), plan.projector.kind)
    with running(plan, file, overrides, resume, checkpoints) as output:
        torch.set_num_threads(physical_cores())
        torch.manual_seed(plan.data.seed)
        return ListenRun(plan, base, output, resume is not None, start).run()


class ListenRun:
    """The parts of a run, loaded, and its two stages.

    Args:
        plan: the recipe.
        base: its composition.
        output: where checkpoints, logs and the composition go.
        resume: go on from the checkpoints there.
        start: the composition whose projector a new run goes on from; None for one at random.
    """

    def __init__(
        self, plan: ListenRecipe, base: Composition, output: Path, resume: bool, start: Composition | None = None
    ) -> None:
        self.plan, self.start, self.output, self.resume = plan, start, output, resume
        self.pronounced = Pronunciation(generators.create("hibari"))  # which may be missing, so before hours of work
        self.model = Model(base).load()
        self.tokenizer = self.model.parts.tokenizer.get()
        self.prompt = ListenPrompt(self.tokenizer, base.spec.backbone.template)
        self.encoder_part = PARTS[plan.encoder.removeprefix("whisper-")]
        encoder = WhisperEncoder(plan.encoder.removeprefix("whisper-"), hub.fetch(self.encoder_part), physical_cores())
        self.encoder_spec = encoder.spec
        encode = self.tokenizer.encode
        stores = {name: ListenStore(encoder, encode, plan.data.seed, say, name) for name in plan.data.shards}
        store = ListenStore(encoder, encode, plan.data.seed, say)
        self.options = find(plan.projector.kind).filled(plan.projector.options)
        stack = self.options["stack"]
        shards = [stores[name].shard(i) for name, count in plan.data.shards.items() for i in range(count)]
        self.heard = Heard(shards, encode, stack, without=repeats_a_test)
        precision = torch.bfloat16 if plan.distil.precision == "bf16" else torch.float32
        path = hub.fetch(base.part(BACKBONE))
        with GGUF(path) as gguf:
            self.llm = load_llama(gguf, spec_from_gguf(gguf), None, precision)
        tested = Heard([store.test()], self.tokenizer.encode, stack)
        self.test = ListenTest(tested, self.llm, self.prompt, self.tokenizer.encode)
        with torch.no_grad():
            table = self.llm.embed(torch.arange(self.llm.shape.vocab)).float()
        said = sorted({token for ids in self.heard.tokens for token in ids})
        torch.manual_seed(plan.data.seed)
        self.options["words"] = 1 + len(said)
        classes = torch.tensor([self.tokenizer.encode(BLANK)[0], *said])
        make = torch_class(plan.projector.kind)
        own = {**self.options, "table": table[classes].half().float()}
        self.projector = make(encoder.spec.dim, self.llm.shape.dim, None, **own)
        self.rows = TokenRows(self.projector.words, said)
        self.keys = WordKeys([self._pieces(token) for token in said], self.options["keys"])
        if self.start is not None:
            known = start_from(self.start, self.projector, self.keys)
            say(f"Starting from the projector of {self.start.path}, which knows {known} of {len(said)} tokens")
        self.sounds = Sounds(self.options["width"], len(self.pronounced.symbols)) if plan.align.sounds else None
        self.results: dict[str, Any] = {}

    def run(self) -> Path:
        """Both stages, then the measurements and the composition."""
        learnt = sum(parameter.numel() for parameter in self.projector.parameters())
        say(
            f"Training {self.plan.name}: {learnt / 1e6:.1f} M parameters, {len(self.heard)} utterances "
            f"({self.heard.left_out} left out), {len(self.rows.tokens)} tokens, test: {len(self.test.asked)} questions"
        )
        frozen = digest_frozen(self.llm)
        read = self.test.read()
        self.results["read"] = share(list(read.values()))
        few = self.test.subset(FEW)
        self.rows.words.keys.copy_(self.keys.all())
        before = "untrained" if self.start is None else "start"
        self.results[before] = share(self.test.spoken(self._project, self.test.asked[::3]))
        say(f"Read: {self.results['read']}; {before}: {self.results[before]}")
        taken = {}
        with StopRequest() as stopping:
            for stage in STAGES:
                taken[stage] = self._stage(stage, few, stopping)
        if digest_frozen(self.llm) != frozen:
            raise SensoriumError("The language model changed, which is frozen; this is a bug, please report it.")
        self._measure_all()
        self._write(taken)
        say(f"Trained composition: {self.output / 'composition'}")
        return self.output / "composition"

    def _stage(self, stage: str, few: list[int], stopping: Any) -> int:
        recipe = self.plan.align if stage == "align" else self.plan.distil
        task = self._align() if stage == "align" else self._distil()
        directory = self.output / stage
        directory.mkdir(exist_ok=True)

        def report(p: Any) -> None:
            parts = "  ".join(f"{name} {value:.3f}" for name, value in p.parts.items())
            speed = f"{p.tokens_per_s:.0f} positions/s  {p.minutes:.1f} min"
            say(f"{stage} {p.step:5d}  loss {p.loss:.4f}  {parts}  {speed}")

        def snapshot(step: int) -> None:
            task.settle()
            found = {
                "spoken": share(self.test.spoken(self._project, few)),
                "token_errors": self._token_errors(self.test.sentences[::3]),
            }
            say(f"{stage} {step}: {found}")
            self._write({stage: step})

        facts = {
            "stage": stage,
            "projector": {"kind": self.plan.projector.kind, **self.options},
            BACKBONE: self.llm.shape.fingerprint,
            "encoder": self.encoder_spec.fingerprint,
            "seed": recipe.seed,
        }
        again = self.resume and (directory / checkpoint.FILE).is_file()
        before = checkpoint.check(directory, facts) if again else 0
        taken = train_loop(
            task, recipe, directory, resume=again, facts=facts, stopping=stopping, report=report, snapshot=snapshot
        )
        task.settle()
        self.resume = self.resume and taken == before  # behind a stage that went on, the next one begins anew
        return taken

    def _pieces(self, token: int) -> list[str]:
        return pieces(self.tokenizer.decode([token]), self.pronounced)

    def _align(self) -> AlignTask:
        said = [self.pronounced.numbers(each.text) for each in self.heard.utterances] if self.sounds else []
        numbers = range(len(self.heard))
        return AlignTask(self.projector, self.rows, self.heard, numbers, self.plan.align, self.keys, self.sounds, said)

    def _distil(self) -> DistilTask:
        data = self.plan.data
        texts = to_answer(self.heard.utterances)[: data.answers]
        given = answered(self.model, self.prompt, texts, data.answer_tokens, say)
        answers = Answers(given, self.tokenizer.encode, data.repeat)
        utterances = self.heard.utterances
        numbers = [i for i, each in enumerate(utterances) if each.text in given or each.source != "phrases"]
        say(f"Distillation: {len(numbers)} utterances, {sum(each.text in given for each in utterances)} with an answer")
        return DistilTask(
            self.projector, self.rows, self.heard, numbers, self.plan.distil, self.llm, self.prompt, answers
        )

    def _project(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            embeds: torch.Tensor = self.projector(features, lengths)
        return embeds

    def _token_errors(self, numbers: Sequence[int]) -> float:
        return round(self.test.token_errors(self.projector.frames, self.rows, numbers), 4)

    def _measure_all(self) -> None:
        """Every question of the split "dev" by every test voice, and without having heard it."""
        asked, found = self.test.asked, self.test.spoken(self._project, self.test.asked)
        self.results["spoken"] = share(found, [self.test.heard.utterances[i].text for i in asked])
        by: dict[str, list[bool]] = {}
        for i, right in zip(asked, found):
            by.setdefault(self.test.heard.utterances[i].voice, []).append(right)
        self.results["by_voice"] = {voice: share(each) for voice, each in by.items()}
        self.results["other_sound"] = share(self.test.spoken(self._project, asked[::3], shift=len(asked[::3]) // 2 + 1))
        self.results["token_errors"] = self._token_errors(self.test.sentences)
        say(json.dumps(self.results, indent=1))

    def _write(self, taken: dict[str, int]) -> None:
        """The base composition with the speech encoder and its projector beside what it has."""
        directory = self.output / "composition"
        directory.mkdir(parents=True, exist_ok=True)
        export_listen(self.projector, self.encoder_spec.dim, directory)
        part = self.encoder_part
        fields = {"source": part.source, "file": part.file, "sha256": part.sha256, "size": part.size}
        encoder = {"kind": self.plan.encoder, "part": {**fields, "licence": part.licence}}
        files = {"weights": "listen.safetensors", "onnx": "listen.onnx"}
        ours = {"kind": self.plan.projector.kind, "encoder": "speech", **files, "options": self.options}
        write_beside(
            self.model.composition,
            directory,
            files.values(),
            {"encoders": {"speech": encoder}, "projectors": {"speech": ours}},
            {BACKBONE: self.llm.shape.fingerprint, "encoders.speech": self.encoder_spec.fingerprint},
            {"listen": {"recipe": self.plan.model_dump(mode="json"), "run": {"steps": taken}, "results": self.results}},
        )


def to_answer(utterances: Iterable[Utterance]) -> list[str]:
    """The texts that the LLM is to answer, each once: all that ask or tell something, and a third of the examples."""
    texts: dict[str, None] = {}
    for i, each in enumerate(utterances):
        if each.source in ("about", "questions", "things") or (each.source == "examples" and i % 3 == 0):
            texts[each.text] = None
    return list(texts)
