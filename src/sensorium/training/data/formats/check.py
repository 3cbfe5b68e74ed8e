"""One pass over a data set: what is in it, what is broken, what looks wrong. Broken things end a training run."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.media.limits import DEFAULT, Limits
from sensorium.prompt import Tokens
from sensorium.training.data.formats.encode import Count, SampleError, encode
from sensorium.training.data.formats.reader import Reader
from sensorium.training.data.formats.sample import Broken, MediaRef, Sample

YES_NO_LEAST, YES_NO_RANGE = 20, (0.35, 0.65)
"""So many yes/no answers, and a share of yes outside of this range, let a model win by always saying one of them."""


@dataclass(frozen=True)
class Yardstick:
    """What tokens are counted with: a composition's tokenizer, the tokens of a medium, and what fits."""

    tokenizer: Tokens
    count: Count
    template: str
    limit: int


@dataclass(frozen=True)
class Offender:
    """One thing that is broken (or doubtful), and where."""

    where: str
    what: str
    reason: str


@dataclass
class Report:
    """What a pass found.

    Attributes:
        kind, name: of the data set.
        samples, turns, pictures: counts; ``samples`` are those that could be read.
        tokens, longest: positions in all, and of the longest sample; None without a yardstick.
        yes, no: answers that begin so.
        broken, doubts: what is wrong, counted by kind; ``doubts`` may be meant so.
        offenders: the first of them.
        sources, licences: of the samples.
        picked: some samples, drawn evenly.
    """

    kind: str
    name: str
    samples: int = 0
    turns: int = 0
    pictures: int = 0
    tokens: int | None = None
    longest: int | None = None
    yes: int = 0
    no: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    doubts: Counter[str] = field(default_factory=Counter)
    offenders: list[Offender] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    picked: list[Sample] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing is broken, and there is something."""
        return not self.broken

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        whole = {k: v for k, v in vars(self).items() if k not in ("picked", "offenders", "sources", "licences")}
        tops = {k: dict(getattr(self, k).most_common(100)) for k in ("sources", "licences")}
        return {**whole, **tops, "ok": self.ok, "offenders": [vars(o) for o in self.offenders]}


def check(
    reader: Reader,
    yardstick: Yardstick | None = None,
    *,
    sample: int | None = None,
    show: int = 10,
    pick: int = 0,
    limits: Limits = DEFAULT,
    progress: Callable[[int], None] = lambda samples: None,
) -> Report:
    """Read, decode and lay out every sample.

    Args:
        reader: the data set.
        yardstick: counts tokens; None leaves them out.
        sample: look at so many samples only, the first of every shard.
        show: offenders that are kept.
        pick: samples that are kept.
        limits: of the media door.
        progress: called with the number of records seen.
    """
    checker = _Checker(Report(reader.kind, reader.name), yardstick, show, pick, limits)
    for seen, item in enumerate(_items(reader, sample, checker), start=1):
        checker.look(item)
        progress(seen)
    return checker.done()


def _items(reader: Reader, sample: int | None, checker: _Checker) -> Iterator[Sample | Broken]:
    shards = reader.shards()
    each = None if sample is None else math.ceil(sample / max(1, len(shards)))
    for shard in shards:
        try:
            yield from islice(reader.read(shard), each)
        except SensoriumError as error:  # the rest of a damaged shard is lost, the others are not
            checker.note("unreadable file", str(shard.path), str(error))


class _Checker:
    """Fills a report. Of every id, conversation and picture it remembers 8 bytes."""

    def __init__(self, report: Report, yardstick: Yardstick | None, show: int, pick: int, limits: Limits) -> None:
        self.report, self.yardstick, self.show, self.pick, self.limits = report, yardstick, show, pick, limits
        self._ids: set[bytes] = set()
        self._contents: set[bytes] = set()
        self._media: dict[bytes, str | None] = {}
        self._random = random.Random(0)
        if yardstick:
            report.tokens = report.longest = 0

    def note(self, what: str, where: str, reason: str, doubt: bool = False) -> None:
        (self.report.doubts if doubt else self.report.broken)[what] += 1
        if len(self.report.offenders) < self.show:
            self.report.offenders.append(Offender(where, what, reason))

    def look(self, item: Sample | Broken) -> None:
        """One record."""
        if isinstance(item, Broken):
            self.note("unreadable record", item.where, item.reason)
            return
        report = self.report
        report.samples += 1
        report.turns += len(item.messages)
        report.pictures += len(item.media)
        report.sources[item.source or "not stated"] += 1
        report.licences[item.licence or "not stated"] += 1
        said = [answer.strip().lower() for answer in item.answers]
        report.yes += sum(text.startswith("yes") and not text[3:4].isalpha() for text in said)
        report.no += sum(text.startswith("no") and not text[2:3].isalpha() for text in said)
        digest = hashlib.sha256("\0".join(f"{m.role}\0{m.text}" for m in item.messages).encode())
        for medium in item.media:
            digest.update((self._medium(item, medium) or medium.name).encode())
        self._lay_out(item)
        if _seen(self._ids, item.id.encode(errors="replace")):
            self.note("duplicate id", item.where, f"the id {item.id!r} stands there for another sample too.", True)
        if _seen(self._contents, digest.digest()):
            self.note("duplicate content", item.where, "the same conversation stands there before.", True)
        self._pick(item)

    def _medium(self, item: Sample, medium: MediaRef) -> str | None:
        """The digest of a medium, or None when it cannot be opened; each is opened once."""
        key = hashlib.sha256(repr((str(medium.path), medium.span, medium.data)).encode()).digest()[:8]
        if key not in self._media or self._media[key] is None:  # a broken one is named for every sample that needs it
            try:
                self._media[key] = medium.load(self.limits).sha256[:16]
            except SensoriumError as error:
                self._media[key] = None
                self.note("broken media", item.where, str(error))
        return self._media[key]

    def _lay_out(self, item: Sample) -> None:
        measure = self.yardstick
        try:
            if measure is None:
                encode(item, _NoTokens(), 0)
                return
            encoded = encode(item, measure.tokenizer, measure.count, template=measure.template)
            assert self.report.tokens is not None and self.report.longest is not None
            self.report.tokens += encoded.length
            self.report.longest = max(self.report.longest, encoded.length)
            if encoded.length > measure.limit:
                self.note("too long", item.where, f"the sample takes {encoded.length} tokens and {measure.limit} fit.")
        except SampleError as error:
            self.note(error.kind, item.where, str(error))

    def _pick(self, item: Sample) -> None:
        """Reservoir sampling."""
        if len(self.report.picked) < self.pick:
            self.report.picked.append(item)
        elif self.pick and (at := self._random.randrange(self.report.samples)) < self.pick:
            self.report.picked[at] = item

    def done(self) -> Report:
        """The report, with what only shows in the end."""
        report, total = self.report, self.report.yes + self.report.no
        if not report.samples and not report.broken:
            self.note("no sample", report.name, "the data set holds no sample.")
        if total >= YES_NO_LEAST and not YES_NO_RANGE[0] <= report.yes / total <= YES_NO_RANGE[1]:
            said = f"{report.yes} answers say yes and {report.no} say no; balance them, or always one of them wins."
            self.note("unbalanced yes/no", report.name, said, True)
        return report


class _NoTokens:
    """A tokenizer for those who do not count."""

    bos_id = None

    def encode(self, text: str) -> list[int]:
        return [1]

    def special(self, name: str) -> int:
        return 2


def _seen(known: set[bytes], value: bytes) -> bool:
    key = hashlib.blake2b(value, digest_size=8).digest()
    if key in known:
        return True
    known.add(key)
    return False
