"""Files changed at random, for tests that no file may get past its reader."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st


def mutated(name: str, files: Mapping[str, bytes], data: st.DataObject) -> bytes:
    """A file with bytes set, cut out, doubled, swapped with another file's, or numbers made huge or zero.

    Args:
        name: of ``files``.
        files: all of them, whose bytes may be swapped in.
        data: what Hypothesis draws from.
    """
    body = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, max(0, len(body) - 1)))
        size = data.draw(st.integers(1, 40))
        what = data.draw(st.sampled_from(["set", "cut", "double", "splice", "huge", "zero"]))
        if what == "set":
            body[place : place + size] = data.draw(st.binary(min_size=size, max_size=size))
        elif what == "cut":
            del body[place : place + size]
        elif what == "double":
            body[place:place] = body[place : place + size]
        elif what == "splice":
            other = files[data.draw(st.sampled_from(sorted(files)))]
            body[place : place + size] = other[place : place + size]
        else:
            body[place : place + 4] = b"\xff\xff\xff\x7f" if what == "huge" else bytes(4)
    return bytes(body)
