"""The kind of a file from its first bytes; names and extensions are never asked."""

from __future__ import annotations

from typing import Literal

Kind = Literal["image", "audio", "video", "unknown"]

_IMAGE = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*")


def kind_of(data: bytes) -> Kind:
    """The kind of an encoded file: "image", "audio", "video" or "unknown"."""
    if data.startswith(_IMAGE) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return "image"
    return "unknown"
