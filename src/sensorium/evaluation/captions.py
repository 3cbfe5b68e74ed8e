"""Scores of captions against what a picture is known to show.

BLEU, ROUGE-L and CIDEr-D are computed as in coco-caption (Chen et al. 2015, arXiv 1504.00325) but with a plain regex
tokeniser instead of a Java one; CIDEr's word weights come from the references of the set itself, so its value compares
only with other captions of the same set. Every function takes N hypotheses and, per hypothesis, at least one reference.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_TOKEN = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
Ngram = tuple[str, ...]


def tokens(text: str) -> list[str]:
    """Lower-case words and numbers; punctuation goes."""
    return _TOKEN.findall(text.lower().replace("’", "'"))


# What is named --------------------------------------------------------------------------------------------------------

_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "persons": "person", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "leaves": "leaf", "knives": "knife", "wolves": "wolf",
    "loaves": "loaf", "calves": "calf", "shelves": "shelf", "oxen": "ox",
}  # fmt: skip
_INVARIANT = {
    "glasses",
    "scissors",
    "bus",
    "grass",
    "dress",
    "lens",
    "pants",
    "trousers",
    "sunglasses",
    "binoculars",
    "chess",
}


def singular(word: str) -> str:
    """The singular of an English noun, by rule: "cherries" -> "cherry", "buses" -> "bus", "glasses" stays."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _INVARIANT or len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses", "zes", "oes", "uses")):
        return word[:-2]
    return word[:-1]


def mentions(caption: str, nouns: Iterable[str], synonyms: Mapping[str, Iterable[str]] | None = None) -> set[str]:
    """Those of `nouns` that a caption names, itself or by a synonym; whole words, singular or plural ("cat" is not in
    "caterpillar", "ice cream" is two words in a row)."""
    words = [singular(word) for word in tokens(caption)]
    text = f" {' '.join(words)} "
    found = set()
    for noun in nouns:
        names = [noun, *(synonyms or {}).get(noun, ())]
        if any(f" {' '.join(singular(word) for word in tokens(name))} " in text for name in names if tokens(name)):
            found.add(noun)
    return found


def noun_hits(
    captions: Sequence[str], nouns: Sequence[Iterable[str]], synonyms: Mapping[str, Iterable[str]] | None = None
) -> list[bool]:
    """For each caption, whether it names at least one of its picture's nouns (or a synonym)."""
    return [bool(mentions(caption, wanted, synonyms)) for caption, wanted in zip(captions, nouns, strict=True)]


def distinct(captions: Sequence[str]) -> float:
    """Different captions / captions, in (0, 1]: near 0 for a model that says the same of every picture."""
    return len({" ".join(tokens(caption)) for caption in captions}) / len(captions) if captions else math.nan


@dataclass(frozen=True)
class Chair:
    """Hallucination (Rohrbach et al. 2018): lower is better for the first two.

    Attributes:
        instance: mentioned objects that are not there / mentioned objects (0 if none is mentioned).
        sentence: captions with at least one object that is not there / captions.
        recall: mentioned objects that are there / objects that are there. An empty caption scores 0 in all three.
    """

    instance: float
    sentence: float
    recall: float


def chair(
    captions: Sequence[str],
    present: Sequence[Iterable[str]],
    vocabulary: Iterable[str],
    synonyms: Mapping[str, Iterable[str]] | None = None,
    uncertain: Sequence[Iterable[str]] | None = None,
) -> Chair:
    """CHAIR over a vocabulary of objects. What is `uncertain` in a picture counts neither way."""
    words = set(vocabulary)
    wrong = right = flawed = there = 0
    for at, (caption, shown) in enumerate(zip(captions, present, strict=True)):
        objects = set(shown) & words
        named = mentions(caption, words, synonyms) - set(uncertain[at] if uncertain else ())
        right += len(named & objects)
        wrong += len(named - objects)
        flawed += bool(named - objects)
        there += len(objects)
    return Chair(
        instance=wrong / (wrong + right) if wrong + right else 0.0,
        sentence=flawed / len(captions) if captions else math.nan,
        recall=right / there if there else math.nan,
    )


# N-gram overlap -------------------------------------------------------------------------------------------------------


def ngrams(words: Sequence[str], n: int) -> Counter[Ngram]:
    """How often each run of `n` words occurs."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], order: int = 4) -> float:
    """Corpus BLEU in [0, 1] (Papineni et al. 2002): clipped n-gram precisions, closest length, no smoothing."""
    matched, total, length, wanted = [0] * order, [0] * order, 0, 0
    for hypothesis, several in _pairs(hypotheses, references):
        length += len(hypothesis)
        wanted += min((abs(len(r) - len(hypothesis)), len(r)) for r in several)[1]
        for n in range(1, order + 1):
            have, allowed = ngrams(hypothesis, n), Counter[Ngram]()
            for reference in several:
                allowed |= ngrams(reference, n)
            matched[n - 1] += (have & allowed).total()
            total[n - 1] += have.total()
    if not all(matched):
        return 0.0
    precision = math.exp(sum(math.log(m / t) for m, t in zip(matched, total)) / order)
    return precision * min(1.0, math.exp(1 - wanted / length))


def rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]], beta: float = 1.2) -> float:
    """Mean ROUGE-L F in [0, 1] (Lin 2004) with coco-caption's beta: from the longest common subsequence."""
    scores = []
    for hypothesis, several in _pairs(hypotheses, references):
        common = [_common(hypothesis, reference) for reference in several]
        precision = max(c / len(hypothesis) for c in common) if hypothesis else 0.0
        recall = max((c / len(r) for c, r in zip(common, several) if r), default=0.0)
        both = precision and recall
        scores.append((1 + beta**2) * precision * recall / (recall + beta**2 * precision) if both else 0.0)
    return float(np.mean(scores)) if scores else math.nan


def cider_d(hypotheses: Sequence[str], references: Sequence[Sequence[str]], sigma: float = 6.0) -> float:
    """The mean of `cider_d_scores`."""
    scores = cider_d_scores(hypotheses, references, sigma)
    return float(np.mean(scores)) if scores else math.nan


def cider_d_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]], sigma: float = 6.0) -> list[float]:
    """CIDEr-D of each caption (Vedantam et al. 2015), 0 to 10: clipped tf-idf cosine of 1- to 4-grams, length penalty.

    The idf comes from these references, so N = 1 gives 0 and the value depends on N. As in coco-caption, lengths are
    counted in bigrams.
    """
    pairs = list(_pairs(hypotheses, references))
    if not pairs:
        return []
    frequency: Counter[Ngram] = Counter()
    for _, several in pairs:
        frequency.update({gram for reference in several for n in range(1, 5) for gram in ngrams(reference, n)})
    log_n = math.log(len(pairs))

    def vectors(words: list[str]) -> tuple[list[dict[Ngram, float]], list[float]]:
        rows = [
            {gram: count * (log_n - math.log(max(1, frequency[gram]))) for gram, count in ngrams(words, n).items()}
            for n in range(1, 5)
        ]
        return rows, [math.sqrt(sum(value**2 for value in row.values())) for row in rows]

    scores = []
    for hypothesis, several in pairs:
        have, have_norm = vectors(hypothesis)
        score = 0.0
        for reference in several:
            want, want_norm = vectors(reference)
            gap = max(len(hypothesis) - 1, 0) - max(len(reference) - 1, 0)
            penalty = math.exp(-(gap**2) / (2 * sigma**2))
            for n in range(4):
                norm = have_norm[n] * want_norm[n]
                if norm:
                    overlap = sum(
                        min(value, want[n].get(gram, 0.0)) * want[n].get(gram, 0.0) for gram, value in have[n].items()
                    )
                    score += overlap / norm * penalty / 4
        scores.append(10 * score / len(several))
    return scores


def _pairs(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> Iterable[tuple[list[str], list[list[str]]]]:
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} captions were given for {len(references)} lists of references.")
    for hypothesis, several in zip(hypotheses, references):
        if isinstance(several, str) or not several:
            raise ValueError("each caption needs a list of at least one reference.")
        yield tokens(hypothesis), [tokens(reference) for reference in several]


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
