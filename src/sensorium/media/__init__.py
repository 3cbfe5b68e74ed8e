"""The only door for untrusted bytes: files, streams and arrays come in, typed arrays go out."""

from __future__ import annotations

from sensorium.media.image import Image, load_image
from sensorium.media.kind import Kind, kind_of
from sensorium.media.limits import DEFAULT, Limits

load = load_image

__all__ = ["DEFAULT", "Image", "Kind", "Limits", "kind_of", "load", "load_image"]
