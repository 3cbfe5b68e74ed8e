"""What the frozen LLM says to texts: the answers that it should also give to the sound of them. Kept in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from sensorium import hub
from sensorium.training.data import spoken_questions
from sensorium.training.listen_prompt import ListenPrompt, Reply

if TYPE_CHECKING:
    from sensorium.model import Model

VERSION = "1"
BATCH = 48
REPEAT = "\nRepeat what I said."


class Answers:
    """Answers by text.

    Args:
        given: token ids of the LLM's answer to each text.
        encode: the tokenizer's.
        repeat: share of texts, by digest, that the LLM is also asked to repeat.
    """

    def __init__(self, given: Mapping[str, list[int]], encode: Callable[[str], list[int]], repeat: float) -> None:
        self.given, self.encode, self.repeat = given, encode, repeat
        asked = spoken_questions.questions("train", phrasings=3, all_families=True)
        self.right = {each.question: each.answer for each in asked}

    def of(self, text: str) -> list[Reply]:
        """The LLM's own answer, where there is one; of a question that has one, the right answer; and the text, where
        it is repeated or there is nothing else."""
        replies = [Reply(tuple(self.given[text]))] if self.given.get(text) else []
        if text in self.right:
            replies.append(Reply(tuple(self.encode(self.right[text]))))
        elif not replies or hashlib.sha256(text.encode()).digest()[1] < 256 * self.repeat:
            replies.append(Reply(tuple(self.encode(text)), tuple(self.encode(REPEAT))))
        return replies


def answered(
    model: Model, prompt: ListenPrompt, texts: Iterable[str], longest: int, say: Callable[[str], None]
) -> dict[str, list[int]]:
    """The bare LLM's greedy answer to each text, cut behind `longest` tokens, in the cache from then on."""
    from sensorium.backbones.engine import SamplingParams
    from sensorium.backbones.segments import Segment

    fingerprint = model.parts.backbone.get().fingerprint
    name = hashlib.sha256(f"{VERSION} {fingerprint} {longest}".encode()).hexdigest()[:24]
    path = hub.cache_dir("training") / f"listen-answers-{name}.json"
    wanted = list(dict.fromkeys(texts))
    found: dict[str, list[int]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    missing = sorted((text for text in wanted if text not in found), key=len)
    engine, tokenizer = model.parts.bare.get(), model.parts.tokenizer.get()
    for at in range(0, len(missing), BATCH):
        some = missing[at : at + BATCH]
        prompts = [[Segment(ids=(*prompt.before, *tokenizer.encode(text), *prompt.between))] for text in some]
        params = [SamplingParams(longest, 0.0, stop_ids=tokenizer.eos_ids) for _ in some]
        said: list[list[int]] = [[] for _ in some]
        for row in engine.generate_batch(prompts, params):
            for ids, step in zip(said, row):
                if step is not None and step.finish != "stop":
                    ids.append(step.token)
        found.update(zip(some, said))
        if at // BATCH % 10 == 9 or at + BATCH >= len(missing):
            say(f"Answers: {min(at + BATCH, len(missing))}/{len(missing)}")
            with hub.atomic_write(path, "w") as text:
                text.write(json.dumps(found))
    return {text: found[text] for text in wanted}
