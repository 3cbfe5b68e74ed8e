"""Images from anywhere -> upright uint8 RGB arrays, or one sentence."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, ClassVar

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.media.arrays import array_to_rgb
from sensorium.media.containers import PARSERS, Broken, Parsed, Parser
from sensorium.media.kind import sniff
from sensorium.media.limits import DEFAULT, Limits
from sensorium.media.reading import read_bytes, shown

if TYPE_CHECKING:
    import PIL.Image

FORMATS = tuple(PARSERS)
_READABLE = f"a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
_ADVICE = f"give {_READABLE}"


@dataclass(frozen=True, eq=False)
class Image:
    """One picture: what every encoder takes.

    Attributes:
        pixels: uint8 [height, width, 3], RGB, upright, transparency on white. Not writable, as caches are keyed by
            ``sha256``: copy it to change it.
        sha256: of the encoded bytes, or of the pixels where there were none.
        frames: frames or pages of the file; ``pixels`` is the first.
        source: where it came from, for messages.
    """

    kind: ClassVar[str] = "image"

    pixels: np.ndarray
    sha256: str
    frames: int = 1
    source: str = "image"

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, np.ndarray) or self.pixels.dtype != np.uint8 or self.pixels.ndim != 3:
            raise SensoriumError("The pixels of an Image must be a uint8 array [height, width, 3]; use load_image.")
        if self.pixels.shape[2] != 3 or 0 in self.pixels.shape:
            raise SensoriumError(f"Pixels of shape {self.pixels.shape} are no RGB picture; use load_image.")
        frozen = self.pixels.view()
        frozen.flags.writeable = False
        object.__setattr__(self, "pixels", frozen)

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return int(self.pixels.shape[0])

    def __repr__(self) -> str:
        return f"Image({self.source!r}, {self.width} x {self.height}, sha256 {self.sha256[:12]})"


def load_image(
    src: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | PIL.Image.Image | np.ndarray | Image,
    limits: Limits = DEFAULT,
) -> Image:
    """Decode a PNG, JPEG, WebP, GIF, BMP or TIFF file, or take over an image that is decoded already.

    The content decides the format, never a name. EXIF orientation is undone, transparency is laid on white, CMYK and
    greys become RGB, samples of more than 8 bits are scaled (see :func:`sensorium.media.pixels.to_rgb`). Of an
    animation or a document of several pages the first frame is taken. Colour profiles are ignored, as is usual in the
    training of encoders.

    Args:
        src: a path, the bytes of a file, a binary stream, a Pillow image, or an array [H, W], [H, W, 1], [H, W, 3] or
            [H, W, 4] of uint8 0..255, float 0..1 or bool. An :class:`Image` is returned as it is.
        limits: what is read and decoded at most; they hold before anything is decoded.

    Raises:
        SensoriumError: one sentence that says what is wrong with ``src`` and what to do.
    """
    if isinstance(src, Image):
        return src
    if isinstance(src, np.ndarray):
        _check_size("The array", *_array_size(src), limits)
        return _from_pixels(array_to_rgb(src), "array")
    import PIL.Image

    if isinstance(src, PIL.Image.Image):
        return _from_pillow(src, limits)
    data, label = read_bytes(src, limits.max_bytes)
    return decode_image(data, limits, label=label)


def decode_image(data: bytes, limits: Limits = DEFAULT, *, label: str = "The data") -> Image:
    """Decode the bytes of an image file; ``label`` names it in messages. Raises as :func:`load_image`."""
    kind, name = sniff(data)
    parser = PARSERS.get(name)
    if parser is None:
        raise SensoriumError(_not_an_image(label, kind, name))
    try:
        parsed = _taken_apart(parser, data, limits)
        _check_size(label, parsed.width, parsed.height, limits)
        if parsed.frames > limits.max_frames:
            raise SensoriumError(
                f"{label} has more than {limits.max_frames} frames; give a single picture or a shorter animation."
            )
        pixels = _decode(parsed, name, label, limits)
    except Broken as broken:
        raise SensoriumError(
            f"{label}, a {name} image, {broken}; get a whole copy of it, or save it again."
        ) from broken
    return Image(pixels, hashlib.sha256(data).hexdigest(), parsed.frames, label)


def _taken_apart(parser: Parser, data: bytes, limits: Limits) -> Parsed:
    try:
        return parser(data, limits.max_frames)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise Broken("is damaged") from error


def _decode(parsed: Parsed, name: str, label: str, limits: Limits) -> np.ndarray:
    from sensorium.media.pixels import to_rgb, upright

    try:
        with _opened(name, parsed.stream) as picture:
            _check_size(label, *picture.size, limits)
            picture.load()
            pixels = upright(to_rgb(picture, parsed.white, parsed.inverted), parsed.orientation)
    except SensoriumError:
        raise
    except MemoryError as error:
        raise SensoriumError(f"{label} does not fit into the memory of this machine; make it smaller first.") from error
    except Exception as error:
        # Decoders raise anything on hostile bytes, and their words may hold addresses: only the gist is passed on.
        cut = any(word in str(error).lower() for word in ("truncated", "not enough", "unexpected end", "short"))
        raise Broken("is cut off" if cut else "is damaged or of an unusual kind") from error
    return np.ascontiguousarray(pixels)


def _opened(name: str, stream: bytes) -> PIL.Image.Image:
    """Open with the one decoder that the content asks for. Its class is called directly, since ``Image.open`` prints a
    warning about large images, which have passed our own limits here."""
    from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

    if name == "TIFF":
        _hush_libtiff()
    decoders: dict[str, type[PIL.Image.Image]] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "WebP": WebPImagePlugin.WebPImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
    }
    return decoders[name](io.BytesIO(stream))  # type: ignore[call-arg]


@functools.cache
def _hush_libtiff() -> None:
    """libtiff writes its own errors to standard error, where only our sentence should stand; Pillow raises them anyway.

    Where the library cannot be reached so (static builds, as on Windows), its line stays.
    """
    with contextlib.suppress(Exception):
        import ctypes

        from PIL import _imaging

        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _from_pillow(picture: PIL.Image.Image, limits: Limits) -> Image:
    from sensorium.media.exif import orientation
    from sensorium.media.pixels import to_rgb, upright

    _check_size("The Pillow image", *picture.size, limits)
    try:
        exif = picture.info.get("exif")
        turned = orientation(exif) if isinstance(exif, bytes) else 1
        pixels = np.array(upright(to_rgb(picture), turned))
    except Exception as error:
        raise SensoriumError(
            f"The Pillow image of mode {shown(picture.mode)} cannot be read; load it with picture.load() to see why."
        ) from error
    return _from_pixels(pixels, "Pillow image")


def _from_pixels(pixels: np.ndarray, source: str) -> Image:
    pixels = np.ascontiguousarray(pixels)
    digest = hashlib.sha256(f"{pixels.shape}".encode())
    digest.update(pixels.data)
    return Image(pixels, digest.hexdigest(), 1, source)


def _array_size(array: np.ndarray) -> tuple[int, int]:
    return (array.shape[1], array.shape[0]) if array.ndim >= 2 else (1, 1)


def _check_size(label: str, width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise SensoriumError(f"{label} has {width} x {height} pixels, so there is nothing to see; give another image.")
    if width * height > limits.max_pixels:
        raise SensoriumError(
            f"{label} has {width} x {height} pixels, more than {limits.max_pixels:,} in all; make it smaller first."
        )
    if max(width, height) > limits.max_side:
        raise SensoriumError(
            f"{label} has {width} x {height} pixels, more than {limits.max_side:,} on a side; make it smaller first."
        )


def _not_an_image(label: str, kind: str, name: str) -> str:
    if kind == "image":
        article = "an" if name[0] in "AEHIOS" and name != "HEIC" else "a"
        return f"{label} is {article} {name} image, which cannot be decoded here; save it as {_READABLE}."
    if kind in ("audio", "video"):
        return f"{label} is {kind} ({name}) and no image; {_ADVICE}."
    if name:
        return f"{label} is {name} and no image; {_ADVICE}."
    return f"{label} is no image that is known here; {_ADVICE}."
