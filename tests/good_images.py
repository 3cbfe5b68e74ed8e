"""Real encoded images of every kind that the media door takes, small, made on the spot. Shared by several tests."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin


def picture(width: int = 24, height: int = 16, channels: int = 3) -> np.ndarray:
    """A picture whose four corners differ: red, green, blue, white, a gradient between; alpha falls to the right."""
    y, x = np.mgrid[0:height, 0:width] / np.maximum([[[height - 1]], [[width - 1]]], 1)
    corners = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], float)
    weights = np.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], -1)
    rgb = (weights @ corners).round().astype(np.uint8)
    if channels == 4:
        return np.dstack([rgb, (255 * (1 - x)).round().astype(np.uint8)])
    return rgb if channels == 3 else np.asarray(Image.fromarray(rgb).convert("L"))


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG from raw rows (each with its filter byte); ``before`` and ``after`` are chunks around the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + png_chunk(b"IEND", b"")


def good_images() -> dict[str, bytes]:
    """Name -> bytes; every one decodes to 24 x 16 pixels."""
    rgb, rgba, grey = (Image.fromarray(picture(channels=channels)) for channels in (3, 4, 1))
    palette, bits = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=16), grey.convert("1")
    cmyk, frames = rgb.convert("CMYK"), [rgb.rotate(90 * turn) for turn in range(1, 4)]
    sixteen = Image.fromarray(picture(channels=1).astype(np.uint16) * 257)
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 3000, zip=True)
    files = {
        "rgb.png": encode(rgb, "PNG"),
        "rgba.png": encode(rgba, "PNG"),
        "grey.png": encode(grey, "PNG"),
        "grey-alpha.png": encode(rgba.convert("LA"), "PNG"),
        "palette.png": encode(palette, "PNG"),
        "palette-transparent.png": encode(palette, "PNG", transparency=0),
        "one-bit.png": encode(bits, "PNG"),
        "grey-16.png": encode(sixteen, "PNG"),
        "text.png": encode(rgb, "PNG", pnginfo=text, exif=exif(1)),
        "animated.png": encode(rgb, "PNG", save_all=True, append_images=frames, duration=100),
        "rgb.jpg": encode(rgb, "JPEG", quality=95, subsampling=0),
        "grey.jpg": encode(grey, "JPEG", quality=95),
        "progressive.jpg": encode(rgb, "JPEG", quality=95, subsampling=0, progressive=True),
        "cmyk.jpg": encode(cmyk, "JPEG", quality=95),
        "exif.jpg": encode(
            rgb, "JPEG", quality=95, subsampling=0, exif=exif(1), icc_profile=b"x" * 70_000, comment=b"c" * 99
        ),
        "restarts.jpg": encode(rgb, "JPEG", quality=95, restart_marker_blocks=1),
        "lossless.webp": encode(rgb, "WEBP", lossless=True),
        "lossy.webp": encode(rgb, "WEBP", quality=95),
        "alpha.webp": encode(rgba, "WEBP", lossless=True),
        "animated.webp": encode(rgb, "WEBP", save_all=True, append_images=frames, lossless=True, exif=exif(1)),
        "palette.gif": encode(palette, "GIF"),
        "transparent.gif": encode(palette, "GIF", transparency=0, comment=b"c" * 999),
        "animated.gif": encode(palette, "GIF", save_all=True, append_images=frames, loop=0),
        "rgb.bmp": encode(rgb, "BMP"),
        "palette.bmp": encode(palette, "BMP"),
        "one-bit.bmp": encode(bits, "BMP"),
        "alpha.bmp": encode(rgba, "BMP"),
        "rgb.tif": encode(rgb, "TIFF"),
        "rgba.tif": encode(rgba, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encode(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encode(rgb, "TIFF", compression="jpeg", quality=95),
        "fax.tif": encode(bits, "TIFF", compression="group4"),
        "grey-16.tif": encode(sixteen, "TIFF"),
        "float.tif": encode(Image.fromarray(picture(channels=1).astype(np.float32) / 255), "TIFF"),
        "int.tif": encode(Image.fromarray(picture(channels=1).astype(np.int32)), "TIFF"),
        "cmyk.tif": encode(cmyk, "TIFF"),
        "pages.tif": encode(rgb, "TIFF", save_all=True, append_images=frames),
    }
    return files
