"""A corpus of bad image files: cut off, damaged, mislabelled, hostile. Each must give one sentence, quickly.

for bad in bad_images(): ...              # name, bytes, a word or two that the sentence must hold
python tests/bad_files.py DIRECTORY       # write them out, to try other programs on
"""

from __future__ import annotations

import gzip
import io
import struct
import sys
import wave
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from good_images import good_images, png, png_chunk


class BadFile(NamedTuple):
    """A file that no door may open: its name, its bytes, a regular expression for the sentence."""

    name: str
    data: bytes
    says: str


PNG = b"\x89PNG\r\n\x1a\n"


def bad_images() -> Iterator[BadFile]:
    """More than 60 bad files, the small ones first; none is larger than 3 MB."""
    yield from _no_images()
    yield from _cut_off()
    yield from _bad_png()
    yield from _bad_jpeg()
    yield from _bad_gif()
    yield from _bad_webp()
    yield from _bad_bmp()
    yield from _bad_tiff()


def _no_images() -> Iterator[BadFile]:
    sound = io.BytesIO()
    with wave.open(sound, "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(bytes(3200))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("a.png", good_images()["rgb.png"])
    box = struct.pack(">I4s4sI", 24, b"ftyp", b"heic", 0) + b"mif1heic"
    yield BadFile("empty.png", b"", "is empty")
    yield BadFile("one-byte.jpg", b"\xff", "no image")
    yield BadFile("text.png", b"This is no picture.\n", "no image")
    yield BadFile("utf16.jpg", "This is no picture".encode("utf-16"), "no image")
    yield BadFile("zeros.bmp", bytes(5000), "no image")
    yield BadFile("ones.tif", b"\xff" * 5000, "no image")
    yield BadFile("page.jpg", b"<!DOCTYPE html><html>404 Not Found</html>", "a web page")
    yield BadFile("xml-page.png", b"\xef\xbb\xbf \n<html lang=en>", "a web page")
    yield BadFile("drawing.png", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG image")
    yield BadFile("script.svg", b"<svg><script>alert(1)</script></svg>", "SVG image")
    yield BadFile("document.jpg", b"%PDF-1.7\n", "PDF")
    yield BadFile("archive.png", archive.getvalue(), "zip archive")
    yield BadFile("packed.png", gzip.compress(good_images()["rgb.png"]), "gzip")
    yield BadFile("sound.png", sound.getvalue(), "is audio")
    yield BadFile("film.gif", struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + bytes(100), "is video")
    yield BadFile("film.webp", b"RIFF\x10\0\0\0AVI LIST", "is video")
    yield BadFile("photo.heic", box, "HEIC image, which cannot be decoded")
    yield BadFile("photo.avif", box.replace(b"heic", b"avif"), "AVIF image, which cannot be decoded")
    yield BadFile("scan.jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "JPEG 2000 image")
    yield BadFile("layers.psd", b"8BPS\0\x01" + bytes(50), "Photoshop image")
    yield BadFile("icon.ico", b"\0\0\x01\0\x01\0" + bytes(50), "icon image")
    yield BadFile("model.png", b"GGUF\x03\0\0\0" + bytes(50), "GGUF")
    yield BadFile("program.jpg", b"\x7fELF" + bytes(60), "program")
    yield BadFile("word.bmp", b"BMW builds cars and motorcycles in Munich.", "no image")


def _cut_off() -> Iterator[BadFile]:
    chosen = (
        "rgb.png",
        "rgb.jpg",
        "progressive.jpg",
        "lossless.webp",
        "lossy.webp",
        "palette.gif",
        "rgb.bmp",
        "rgb.tif",
        "deflate.tif",
    )
    for name in chosen:
        data = good_images()[name]
        for part in (12, len(data) // 3, len(data) * 3 // 4):
            yield BadFile(f"cut-{part}-{name}", data[:part], "cut off|damaged|no image")


def _bad_png() -> Iterator[BadFile]:
    good = good_images()["rgb.png"]
    rows = bytes(1 + 8 * 3) * 8

    def header(width: int, height: int, depth: int = 8, colour: int = 2, method: int = 0) -> bytes:
        fields = struct.pack(">IIBBBBB", width, height, depth, colour, method, 0, 0)
        return PNG + png_chunk(b"IHDR", fields) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")

    yield BadFile("signature-only.png", PNG, "cut off")
    yield BadFile("crlf.png", good.replace(b"\r\n", b"\n"), "no image")
    yield BadFile("no-pixels.png", good[:33] + png_chunk(b"IEND", b""), "damaged")
    yield BadFile("two-headers.png", good[:33] + good[8:], "damaged")
    yield BadFile("header-later.png", PNG + png_chunk(b"tEXt", b"a\0b") + good[8:], "damaged")
    yield BadFile("bad-checksum.png", good[:-20] + bytes([good[-20] ^ 1]) + good[-19:], "damaged")
    yield BadFile("zero-width.png", header(0, 8), "nothing to see")
    yield BadFile("bomb.png", header(50_000, 50_000), "50000 x 50000 pixels, more than")
    yield BadFile("long.png", header(2_000_000, 1), "on a side")
    yield BadFile("huge-numbers.png", header(0xFFFFFFFF, 0xFFFFFFFF), "more than")
    yield BadFile("odd-depth.png", header(8, 8, depth=3), "damaged")
    yield BadFile("odd-colour.png", header(8, 8, colour=5), "damaged")
    yield BadFile("odd-method.png", header(8, 8, method=9), "damaged")
    yield BadFile(
        "no-zlib.png", PNG + good[8:33] + png_chunk(b"IDAT", b"hello") + png_chunk(b"IEND", b""), "damaged|cut off"
    )
    yield BadFile("bad-filter.png", png(8, 8, 8, 2, b"\x09" * len(rows)), "damaged")
    yield BadFile("long-chunk.png", good[:33] + b"\x7f\xff\xff\xffIDAT" + bytes(100), "cut off")
    yield BadFile("no-palette.png", png(8, 8, 8, 3, b"\0" + b"\5" * 8), "cut off|damaged")
    yield BadFile("many-chunks.png", good[:33] + png_chunk(b"tEXt", b"") * 60_000 + good[33:], "no camera or program")
    frames = b"".join(png_chunk(b"fcTL", struct.pack(">I", i) + bytes(22)) for i in range(11_000))
    yield BadFile("many-frames.png", good[:33] + frames + good[33:], "more than 10000 frames")


def _bad_jpeg() -> Iterator[BadFile]:
    good = good_images()["rgb.jpg"]
    start = good.index(b"\xff\xc0")

    def sized(width: int, height: int) -> bytes:
        return good[: start + 5] + struct.pack(">HH", height, width) + good[start + 9 :]

    scan = good[good.index(b"\xff\xda") : -2]
    progressive = good_images()["progressive.jpg"]
    yield BadFile("mark-only.jpg", b"\xff\xd8\xff", "cut off")
    yield BadFile("ends-at-once.jpg", b"\xff\xd8\xff\xd9", "damaged")
    yield BadFile("zero-size.jpg", sized(0, 0), "damaged|nothing to see")
    yield BadFile("zero-height.jpg", sized(24, 0), "nothing to see")
    yield BadFile("bomb.jpg", sized(65_500, 65_500), "65500 x 65500 pixels, more than")
    yield BadFile("no-tables.jpg", good[:2] + good[start:], "damaged|cut off")
    yield BadFile("no-scan.jpg", good[: good.index(b"\xff\xda")] + b"\xff\xd9", "damaged")
    yield BadFile("short-segment.jpg", b"\xff\xd8\xff\xe0\0\0" + good[2:], "damaged")
    yield BadFile("twelve-bit.jpg", good[: start + 4] + b"\x0c" + good[start + 5 :], "damaged")
    yield BadFile("five-components.jpg", good[: start + 9] + b"\x05" + good[start + 10 :], "damaged|cut off")
    yield BadFile("junk.jpg", b"\xff\xd8\xff" + bytes(200_000), "damaged|cut off")
    yield BadFile("many-segments.jpg", b"\xff\xd8" + b"\xff\xfe\0\2" * 6_000 + good[2:], "no camera or program")
    yield BadFile("many-scans.jpg", progressive[:-2] + scan * 200 + b"\xff\xd9", "no camera or program")


def _bad_gif() -> Iterator[BadFile]:
    good = good_images()["palette.gif"]
    yield BadFile("signature-only.gif", b"GIF89a", "cut off")
    yield BadFile("no-frame.gif", good[:13] + good[13 : 13 + 48] + b";", "cut off|damaged")
    yield BadFile("zero-size.gif", b"GIF89a" + bytes(7) + b",\0\0\0\0\0\0\0\0\0\x02\x01\x00\x00;", "nothing to see")
    yield BadFile(
        "bomb.gif", good[:6] + struct.pack("<HH", 65_000, 65_000) + good[10:], "65000 x 65000 pixels, more than"
    )
    image = good.index(b",", 13 + 48)
    big = good[: image + 5] + struct.pack("<HH", 60_000, 60_000) + good[image + 9 :]
    yield BadFile("frame-bomb.gif", big, "60000 x 60000 pixels, more than")
    yield BadFile("bad-code-size.gif", good[: image + 10] + b"\xff" + good[image + 11 :], "damaged|cut off")
    frame = b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    yield BadFile(
        "many-frames.gif", b"GIF89a\1\0\1\0\x80\0\0" + bytes(6) + frame * 20_000 + b";", "more than 10000 frames"
    )
    yield BadFile("junk.gif", b"GIF89a\1\0\1\0\0\0\0" + b"\x99" * 500, "damaged")


def _bad_webp() -> Iterator[BadFile]:
    good = good_images()["lossless.webp"]
    yield BadFile("header-only.webp", b"RIFF\x04\0\0\0WEBP", "cut off")
    yield BadFile("no-picture.webp", b"RIFF\x0c\0\0\0WEBPEXIF\0\0\0\0", "damaged")
    yield BadFile(
        "bomb.webp",
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff" * 6,
        "16777216 x 16777216 pixels, more than",
    )
    yield BadFile("damaged.webp", good[:24] + bytes(len(good) - 24), "damaged|cut off")
    canvas = b"VP8X\x0a\0\0\0\x02\0\0\0" + bytes(6)
    for name, body, says in (
        ("many-frames.webp", (b"ANMF\x10\0\0\0" + bytes(16)) * 11_000, "more than 10000 frames"),
        ("many-chunks.webp", b"JUNK\0\0\0\0" * 30_000, "no camera or program"),
    ):
        yield BadFile(name, b"RIFF" + struct.pack("<I", 22 + len(body)) + b"WEBP" + canvas + body, says)


def _bad_bmp() -> Iterator[BadFile]:
    good = good_images()["rgb.bmp"]

    def sized(width: int, height: int) -> bytes:
        return good[:18] + struct.pack("<ii", width, height) + good[26:]

    yield BadFile("bomb.bmp", sized(40_000, 40_000), "40000 x 40000 pixels, more than")
    yield BadFile("zero.bmp", sized(0, 0), "nothing to see")
    yield BadFile("negative.bmp", sized(-5, 5), "damaged")
    yield BadFile("minimal-height.bmp", sized(5, -(2**31)), "more than")
    yield BadFile("odd-bits.bmp", good[:28] + b"\x07" + good[29:], "damaged")
    yield BadFile("odd-compression.bmp", good[:30] + b"\x0d" + good[31:], "damaged")
    runs = struct.pack("<IiiHHIIiiII", 40, 9000, 7000, 1, 8, 1, 0, 0, 0, 0, 0) + b"\1\1\0\0" * 600_000
    yield BadFile("slow-runs.bmp", b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + runs, "no camera or program")
    yield BadFile("no-room.bmp", good[:10] + b"\xff\xff\xff\x7f" + good[14:], "damaged|cut off")


def _tiff(fields: list[tuple[int, int, int, int]], tail: bytes = b"", following: int = 0) -> bytes:
    directory = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", *field) for field in fields)
    return b"II*\0\x08\0\0\0" + directory + struct.pack("<I", following) + tail


def _bad_tiff() -> Iterator[BadFile]:
    size = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    place = [(273, 4, 1, 8), (278, 4, 1, 8), (279, 4, 1, 64)]
    yield BadFile("header-only.tif", b"II*\0\x08\0\0\0", "cut off")
    yield BadFile("far-directory.tif", b"II*\0\xff\xff\xff\x7f" + bytes(50), "cut off")
    yield BadFile("no-size.tif", _tiff(place, bytes(64)), "damaged")
    yield BadFile("no-strips.tif", _tiff(size, bytes(64)), "damaged")
    yield BadFile(
        "bomb.tif", _tiff([(256, 4, 1, 100_000), (257, 4, 1, 100_000), *size[2:], *place], bytes(64)), "more than"
    )
    yield BadFile(
        "huge-numbers.tif",
        _tiff([(256, 4, 1, 2**32 - 1), (257, 4, 1, 2**32 - 1), *size[2:], *place], bytes(64)),
        "more than",
    )
    yield BadFile("odd-compression.tif", _tiff([*size[:3], (259, 3, 1, 9999), *size[4:], *place], bytes(64)), "damaged")
    yield BadFile(
        "lzw-garbage.tif", _tiff([*size[:3], (259, 3, 1, 5), *size[4:], *place], b"\xaa" * 64), "damaged|cut off"
    )
    yield BadFile("strip-outside.tif", _tiff([*size, (273, 4, 1, 99_999), *place[1:]], bytes(64)), "cut off|damaged")
    yield BadFile(
        "many-samples.tif", _tiff([*size[:5], (277, 3, 1, 60_000), *place], bytes(64)), "no camera or program"
    )
    yield BadFile("long-field.tif", _tiff([*size, *place, (320, 3, 2**30, 8)], bytes(64)), "cut off")
    overlapping = [(tag, 1, 90_000, 8) for tag in (273, 279, 320, 324, 325, 347, 519, 520, 521)]
    yield BadFile("overlapping-fields.tif", _tiff([*size, *overlapping], bytes(100_000)), "no camera or program")
    yield BadFile(
        "many-strips.tif", _tiff([*size, (273, 4, 300_000, 8), *place[1:]], bytes(1_300_000)), "no camera or program"
    )
    tiles = [(322, 4, 1, 2**20), (323, 4, 1, 2**20), (324, 4, 1, 8), (325, 4, 1, 64)]
    yield BadFile("tile-bomb.tif", _tiff([*size, *tiles], bytes(64)), "no camera or program")
    yield BadFile(
        "many-fields.tif",
        b"II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + bytes(65_535 * 12 + 4),
        "no camera or program",
    )
    yield BadFile("cut-directory.tif", b"II*\0\x08\0\0\0\x09\0" + bytes(40), "cut off")


def main(directory: str) -> None:
    """Write the corpus into a directory."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for bad in bad_images():
        (target / bad.name).write_bytes(bad.data)


if __name__ == "__main__":
    main(sys.argv[1])
