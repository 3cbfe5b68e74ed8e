"""How a spoken message is laid out for training, and its twin that holds the words: positions as at inference.

    <start>user\\n EMBEDS <end>\\n<start>assistant\\n ANSWER <end>

The embeddings stand where the words would stand, with nothing of their own around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sensorium.prompt import IGNORE, TEMPLATES, Tokens
from sensorium.training.rows import Branch, Layout, Rows, pack


@dataclass(frozen=True)
class Reply:
    """Token ids of an answer, without its end, and what is written behind the spoken words in the same message."""

    answer: tuple[int, ...]
    behind: tuple[int, ...] = ()


class ListenPrompt:
    """Lays spoken messages out in a chat template.

    Args:
        tokenizer: the backbone's.
        template: a key of `prompt.TEMPLATES`.
    """

    def __init__(self, tokenizer: Tokens, template: str = "chatml") -> None:
        form = TEMPLATES[template]
        self.end = form.end_id(tokenizer)
        bos = getattr(tokenizer, "bos_id", None) if getattr(tokenizer, "add_bos", False) else None
        start = [tokenizer.special(form.start)] if form.start else []
        close = [self.end] if form.end else []
        self.before = (*([] if bos is None else [bos]), *start, *tokenizer.encode(form.named("user") + "\n"))
        self.between = (*close, *tokenizer.encode("\n"), *start, *tokenizer.encode(form.assistant + "\n"))

    def branch(self, reply: Reply) -> Branch:
        """What stands behind the spoken words; the answer and its end are targets."""
        asked = (*reply.behind, *self.between)
        answer = (*reply.answer, self.end)
        return Branch((*asked, *answer), (*(IGNORE for _ in asked), *answer))

    def rows(self, positions: int, replies: Sequence[Sequence[Reply]]) -> Rows:
        """Rows of spoken messages of so many positions, each with its replies as branches."""
        return self._packed(Layout(self.before, positions), replies)

    def twin(self, said: Sequence[Sequence[int]], replies: Sequence[Sequence[Reply]]) -> Rows:
        """The same with the words in place of the sound."""
        return self._packed([Layout((*self.before, *ids), 0) for ids in said], replies)

    def _packed(self, layout: Layout | list[Layout], replies: Sequence[Sequence[Reply]]) -> Rows:
        branches = [[self.branch(reply) for reply in each] for each in replies]
        shared = [layout.length] * len(replies) if isinstance(layout, Layout) else [each.length for each in layout]
        sizes = [size + sum(len(branch.ids) for branch in each) for size, each in zip(shared, branches)]
        return pack(layout, branches, max(sizes))
