"""The door for images: everything that is an image comes in right, everything else gives one sentence, quickly."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps

from bad_files import bad_images
from good_images import encode, exif, good_images, picture, png, png_chunk
from sensorium import media
from sensorium.errors import SensoriumError
from sensorium.media import Image, Limits, kind_of, load, load_image

GOOD = good_images()
BAD = {bad.name: bad for bad in bad_images()}
SECONDS = 2.0  # of this thread on the processor, for any one file, so that a busy machine fails no test


def sentence(src, limits: Limits = media.DEFAULT) -> str:
    """The one sentence with which ``src`` is refused."""
    start = time.thread_time()
    with pytest.raises(SensoriumError) as caught:
        load_image(src, limits)
    assert time.thread_time() - start < SECONDS
    text = str(caught.value)
    assert text.endswith(".") and text.isprintable(), text
    assert "0x" not in text and "<" not in text and "Traceback" not in text, text  # no addresses of objects
    return text


def close(left: np.ndarray, right: np.ndarray, most: float = 2, mean: float = 1) -> None:
    assert left.shape == right.shape and left.dtype == right.dtype == np.uint8
    apart = np.abs(left.astype(int) - right.astype(int))
    assert apart.max() <= most and apart.mean() <= mean, (apart.max(), apart.mean())


# what comes in


@pytest.mark.parametrize("name", GOOD)
def test_good_files_give_what_pillow_gives(name):
    """Taking the file apart loses nothing that the pixels need."""
    image = load_image(GOOD[name])
    assert image.pixels.shape == (16, 24, 3) and image.pixels.dtype == np.uint8
    assert image.sha256 == hashlib.sha256(GOOD[name]).hexdigest()
    assert image.frames == (4 if name.startswith(("animated", "pages")) else 1)
    assert kind_of(GOOD[name]) == "image"
    reference = Pillow.open(io.BytesIO(GOOD[name]))
    if reference.mode in ("F", "I", "I;16"):
        expected = np.repeat(picture(channels=1)[:, :, None], 3, 2)
    else:
        rgba = reference.convert("RGBA")
        expected = np.asarray(Pillow.alpha_composite(Pillow.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
    close(image.pixels, expected, most=1)


@pytest.mark.parametrize("name", [name for name in GOOD if "rgb." in name])
def test_good_files_look_as_they_were_made(name):
    lossy = name.startswith("lossy") or name.endswith(".jpg")
    close(load_image(GOOD[name]).pixels, picture(), most=30 if lossy else 0, mean=4 if lossy else 0)


def test_transparency_is_laid_on_white():
    rgba = picture(channels=4).astype(float)
    alpha = rgba[:, :, 3:] / 255
    expected = (rgba[:, :, :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    for name in ("rgba.png", "alpha.webp", "rgba.tif"):
        close(load_image(GOOD[name]).pixels, expected, most=1)
    close(load_image(picture(channels=4)).pixels, expected, most=1)


@pytest.mark.parametrize("colour", [(2, 255, 0, 0), (0, 76, None, None)])
def test_a_transparent_colour_of_a_png(colour):
    kind, red, green, blue = colour
    rows = (b"\0" + bytes([red, green, blue] if kind == 2 else [red]) * 4 + bytes(4 * (3 if kind == 2 else 1))) * 2
    values = struct.pack(">HHH", red, green, blue) if kind == 2 else struct.pack(">H", red)
    pixels = load_image(png(8, 2, 8, kind, rows, before=png_chunk(b"tRNS", values))).pixels
    assert (pixels[:, :4] == 255).all() and (pixels[:, 4:] == 0).all()


def test_a_transparent_grey_of_sixteen_bits():
    rows = b"\0" + struct.pack(">HHH", 1000, 1001, 65535)
    pixels = load_image(png(3, 1, 16, 0, rows, before=png_chunk(b"tRNS", struct.pack(">H", 1000)))).pixels
    assert pixels[0, :, 0].tolist() == [255, 4, 255]


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_scaled_and_not_cut(kind, channels):
    values = [0, 20_000, 40_000, 65_535]
    opaque = [65_535] if kind in (4, 6) else []
    rows = b"\0" + b"".join(struct.pack(f">{channels}H", *[v] * (channels - len(opaque)), *opaque) for v in values)
    pixels = load_image(png(4, 1, 16, kind, rows)).pixels
    assert np.abs(pixels[0].astype(int) - np.array([[0], [78], [156], [255]])).max() <= 1


def test_twelve_bit_and_white_is_zero_tiff():
    samples = np.array([[0, 1024, 4095]], np.uint16)
    data = bytearray(encode(Pillow.fromarray(samples), "TIFF"))
    assert load_image(bytes(data)).pixels[0, :, 0].tolist() == [0, 4, 16]
    place = data.index(struct.pack("<HHI", 262, 3, 1))  # photometric interpretation
    data[place + 8 : place + 10] = struct.pack("<H", 0)
    assert load_image(bytes(data)).pixels[0, :, 0].tolist() == [255, 251, 239]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 32768.0, 65535.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 5e5, 1e6], [0, 128, 255]),
        ([float("nan"), 0.5, float("inf")], [0, 128, 128]),
        ([float("nan")] * 3, [0, 0, 0]),
        ([7.0, 7.0, 7.0], [7, 7, 7]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
    ],
)
def test_float_samples(values, expected):
    data = encode(Pillow.fromarray(np.array([values], np.float32)), "TIFF")
    assert load_image(data).pixels[0, :, 0].tolist() == (
        expected if values[0] == values[0] else expected[:1] + load_image(data).pixels[0, 1:, 0].tolist()
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 32768, 65535], [0, 128, 255]),
        ([-2, 0, 2], [0, 128, 255]),
        ([0, 5 * 10**8, 10**9], [0, 128, 255]),
    ],
)
def test_integer_samples(values, expected):
    data = encode(Pillow.fromarray(np.array([values], np.int32)), "TIFF")
    assert load_image(data).pixels[0, :, 0].tolist() == expected


def test_lab():
    lab = Pillow.frombytes("LAB", (2, 1), bytes([255, 0, 0, 0, 0, 0]))  # L, and a and b as signed bytes
    pixels = load_image(encode(lab, "TIFF")).pixels
    assert pixels[0, 0].min() > 245 and pixels[0, 1].max() < 10


def test_cmyk_is_read_inverted_with_and_without_adobes_mark():
    """Adobe stores CMYK inverted, and so does everybody since (libjpeg.txt, "Special color spaces")."""
    data = encode(Pillow.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95)
    start = data.index(b"\xff\xee")
    plain = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]
    for file in (data, plain):
        assert np.abs(load_image(file).pixels[8, 8].astype(int) - [0, 255, 255]).max() < 8


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation(format, orientation):
    image = Pillow.fromarray(picture())
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(format, {})
    if format == "TIFF":
        data = encode(image, format, tiffinfo={274: orientation})
    else:
        data = encode(image, format, exif=exif(orientation), **options)
    expected = np.asarray(ImageOps.exif_transpose(Pillow.open(io.BytesIO(data))).convert("RGB"))
    close(load_image(data).pixels, expected, most=0, mean=0)
    close(load_image(Pillow.open(io.BytesIO(data))).pixels, expected, most=0, mean=0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1), (2, 3), (100, 5000)])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
def test_strange_shapes(shape, format):
    if format == "WEBP" and max(shape) > 16_383:
        pytest.skip("WebP ends at 16383")
    data = encode(Pillow.fromarray(picture(shape[1], shape[0])), format)
    assert load_image(data).pixels.shape == (*shape, 3)


def test_the_content_decides_and_not_the_name(tmp_path):
    for name in ("photo.png", "photo.txt", "photo", "sound.mp3", "ünïcödé 图.gif"):
        (tmp_path / name).write_bytes(GOOD["rgb.jpg"])
        image = load_image(tmp_path / name)
        assert image.sha256 == load_image(str(tmp_path / name)).sha256 and name in image.source


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    data = GOOD["rgb.png"]
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with path.open("rb") as stream:
        sources = [
            path,
            str(path),
            data,
            bytearray(data),
            memoryview(data),
            io.BytesIO(data),
            stream,
            picture(),
            Pillow.open(path),
        ]
        images = [load_image(source) for source in sources]
    for image in images:
        close(image.pixels, picture(), most=0, mean=0)
    assert len({image.sha256 for image in images[:7]}) == 1
    assert images[7].sha256 == images[8].sha256 != images[0].sha256
    assert load_image(images[0]) is images[0]


def test_pixels_are_frozen_and_the_callers_array_is_not():
    array = picture().copy()
    image = load_image(array)
    array[:] = 0
    close(image.pixels, picture(), most=0, mean=0)
    for source in (array, GOOD["rgb.png"], GOOD["grey-16.png"], Pillow.fromarray(picture())):
        with pytest.raises(ValueError):
            load_image(source).pixels[0, 0] = 1
    mine = picture().copy()
    Image(mine, "x")
    mine[0, 0] = 1
    assert "24 x 16" in repr(image) and len(repr(image)) < 100


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), [[0]], np.zeros((0, 4, 3), np.uint8), None]
)
def test_an_image_holds_pixels_only(array):
    with pytest.raises(SensoriumError, match="load_image"):
        Image(array, "x")


def test_hashes_tell_shapes_apart():
    assert load_image(np.zeros((2, 8, 3), np.uint8)).sha256 != load_image(np.zeros((8, 2, 3), np.uint8)).sha256


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 7]], np.uint8), [0, 7]),
        (np.array([[[0], [7]]], np.uint8), [0, 7]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0.0, 0.5]]), [0, 128]),
        (np.array([[0.0, 1.0]], np.float16), [0, 255]),
        (np.array([[0.0, 1.0]], ">f4"), [0, 255]),
        (np.array([[-0.001, 1.004]], np.float32), [0, 255]),
    ],
)
def test_arrays(array, expected):
    assert load_image(array).pixels[0].tolist() == [[value] * 3 for value in expected]
    assert load_image(np.repeat(array, 2, 1)[:, ::2]).pixels[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 20, 30), np.uint8), "channels first; give array.transpose"),
        (np.zeros((1, 20, 30), np.float32), "channels first"),
        (np.zeros((2, 20, 30, 3), np.uint8), "give one image"),
        (np.zeros((20, 30, 2), np.uint8), "2 channels"),
        (np.zeros(20, np.uint8), "is no image"),
        (np.zeros((), np.uint8), "is no image"),
        (np.zeros((0, 5, 3), np.uint8), "nothing to see"),
        (np.zeros((4, 4), np.int64), "int64 has no known range"),
        (np.zeros((4, 4), np.uint16), "uint16 has no known range"),
        (np.zeros((4, 4), complex), "has no known range"),
        (np.array([["a"]]), "has no known range"),
        (np.full((4, 4), 200.0), "goes from 200 to 200; scale it"),
        (np.full((4, 4), -1.0), "scale it"),
        (np.full((4, 4), np.nan), "not finite"),
        (np.broadcast_to(np.uint8(0), (10_000, 10_000)), "more than 64,000,000"),
    ],
)
def test_arrays_that_are_refused(array, words):
    assert words in sentence(array)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBa", "La", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"],
)
def test_pillow_images_of_every_mode(mode):
    assert load_image(Pillow.new(mode, (5, 3))).pixels.shape == (3, 5, 3)


def test_a_pillow_image_that_cannot_be_loaded():
    assert "cannot be read" in sentence(Pillow.open(io.BytesIO(GOOD["rgb.jpg"][:700])))
    assert "more than" in sentence(Pillow.new("1", (20_000, 20_000)))


# what must not matter


def webp_with(name: bytes, body: bytes) -> bytes:
    data = GOOD["lossless.webp"] + name + struct.pack("<I", len(body)) + body
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def inflated(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def test_bombs_and_ballast_in_metadata_do_not_matter():
    """Each file is a good picture with hostile or endless metadata; the picture comes in, quickly."""
    header, rest = GOOD["rgb.png"][:33], GOOD["rgb.png"][33:]
    jpeg, gif = GOOD["rgb.jpg"], GOOD["palette.gif"]
    table = gif.index(b",", 13 + 48)
    fields = b"".join(struct.pack("<HHII", 30_000 + i, 7, 900_000, 8) for i in range(4000))
    overlapping = b"II*\0\x08\0\0\0" + struct.pack("<H", 4000) + fields + bytes(900_000)
    segments = b"".join(
        b"\xff\xe1" + struct.pack(">H", 65_535) + b"Exif\0\0" + overlapping[i * 65_527 :][:65_527] for i in range(14)
    )
    files = {
        "png text": header + png_chunk(b"zTXt", b"a\0\0" + inflated(80 << 20)) + rest,
        "png profile": header + png_chunk(b"iCCP", b"a\0\0" + inflated(80 << 20)) + rest,
        "png many texts": header + png_chunk(b"zTXt", b"a\0\0" + inflated(1 << 20)) * 2000 + rest,
        "png exif": header + png_chunk(b"eXIf", overlapping) + rest,
        "png odd chunks": header + png_chunk(b"tRNS", b"") + png_chunk(b"gAMA", b"") + png_chunk(b"ABCD", b"x") + rest,
        "jpeg exif": jpeg[:2] + segments + jpeg[2:],
        "jpeg profile": jpeg[:2]
        + (b"\xff\xe2" + struct.pack(">H", 65_535) + b"ICC_PROFILE\0\1\1" + bytes(65_519)) * 200
        + jpeg[2:],
        "jpeg comments": jpeg[:2] + b"\xff\xfe\0\2" * 4000 + jpeg[2:],
        "jpeg filling": jpeg[:2] + b"\xff" * 60_000 + jpeg[2:],
        "gif comment": gif[:table] + b"!\xfe" + (b"\xff" + b"c" * 255) * 80_000 + b"\0" + gif[table:],
        "gif extensions": gif[:table] + b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0" * 20_000 + gif[table:],
        "webp exif": webp_with(b"EXIF", overlapping),
    }
    for name, data in files.items():
        start = time.thread_time()
        assert load_image(data).pixels.shape == (16, 24, 3), name
        assert time.thread_time() - start < SECONDS, name


@pytest.mark.parametrize(
    "name", ["rgb.png", "rgb.jpg", "progressive.jpg", "palette.gif", "rgb.bmp", "rgb.tif", "lossless.webp"]
)
@pytest.mark.parametrize("tail", [b"\0", b"\xff\xda" * 5000, b"ftypmp42 a film" * 100, GOOD["rgb.jpg"] * 3, b"\n"])
def test_trailing_data_does_not_matter(name, tail):
    close(load_image(GOOD[name] + tail).pixels, load_image(GOOD[name]).pixels, most=0, mean=0)


def test_a_lost_end_mark_does_not_matter():
    close(load_image(GOOD["rgb.png"][:-12]).pixels, picture(), most=0, mean=0)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"II*\0",
        b"Exif\0\0",
        b"II*\0\xff\xff\xff\xff",
        exif(6)[:20],
        b"MM\0*\0\0\0\x08\xff\xff",
        exif(6).replace(b"\x01\x12", b"\x02\x12"),
    ],
)
def test_broken_exif_means_upright(blob):
    header, rest = GOOD["rgb.png"][:33], GOOD["rgb.png"][33:]
    close(load_image(header + png_chunk(b"eXIf", blob) + rest).pixels, picture(), most=0, mean=0)


def test_an_inner_frame_of_a_gif_shows_the_right_place():
    inner = Pillow.fromarray(picture()).quantize(16)
    data = bytearray(encode(inner, "GIF"))
    struct.pack_into("<HH", data, 6, 30, 20)  # a larger canvas than the frame
    assert load_image(bytes(data)).pixels.shape == (20, 30, 3)


def test_nothing_is_printed_and_nothing_warned(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in GOOD.values():
            load_image(data)
        for bad in BAD.values():
            with pytest.raises(SensoriumError):
                load_image(bad.data)
    assert capfd.readouterr() == ("", "")


def test_threads():
    names = list(GOOD) * 4
    alone = {name: load_image(data).pixels for name, data in GOOD.items()}
    with ThreadPoolExecutor(8) as pool:
        for name, image in zip(names, pool.map(lambda name: load_image(GOOD[name]), names)):
            assert (image.pixels == alone[name]).all()


# what is refused


def test_the_corpus_is_large():
    assert len(BAD) >= 60


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_sentence(name):
    import re

    text = sentence(BAD[name].data)
    assert re.search(BAD[name].says, text), text
    assert text.startswith("The data")


@pytest.mark.parametrize("limits", [Limits(max_pixels=383), Limits(max_side=23), Limits(max_bytes=100)])
@pytest.mark.parametrize("name", GOOD)
def test_limits_hold_before_anything_is_decoded(name, limits, monkeypatch):
    def decode(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr("sensorium.media.image._opened", decode)
    if limits.max_bytes == 100 and len(GOOD[name]) <= 100:
        pytest.skip("a small file")
    assert "more than" in sentence(GOOD[name], limits)


@pytest.mark.parametrize("name", [name for name in GOOD if name.startswith(("animated", "pages"))])
def test_the_limit_of_frames(name):
    assert load_image(GOOD[name], Limits(max_frames=4)).frames == 4
    assert "more than 3 frames" in sentence(GOOD[name], Limits(max_frames=3))


def test_limits_may_be_exactly_met():
    data = GOOD["rgb.png"]
    assert load_image(data, Limits(max_bytes=len(data), max_pixels=384, max_side=24, max_frames=1))


def test_our_limits_count_and_not_pillows(monkeypatch):
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 20)  # it would warn, and refuse twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in GOOD:
            if not name.endswith((".webp", ".tif")):  # there Pillow checks on its own, before it allocates
                load_image(GOOD[name])


def test_paths_that_name_no_file(tmp_path):
    assert "does not exist; check the path" in sentence(tmp_path / "none.png")
    assert "is a directory" in sentence(tmp_path)
    assert "is a directory" in sentence(str(tmp_path) + "/")
    (tmp_path / "dangling.png").symlink_to("none")
    assert "does not exist" in sentence(tmp_path / "dangling.png")
    (tmp_path / "empty.png").write_bytes(b"")
    assert "empty.png is empty" in sentence(tmp_path / "empty.png")
    (tmp_path / "file").write_bytes(b"x")
    assert "cannot be read" in sentence(tmp_path / "file" / "a.png")
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in sentence(tmp_path / "loop")
    assert "cannot be read" in sentence("x" * 5000 + ".png")
    assert "is no path" in sentence("/tmp/a\0b.png")
    assert "empty path" in sentence("")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_and_devices_never_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "is a pipe" in sentence(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    assert "is a pipe" in sentence(tmp_path / "link.png")
    for device in ("/dev/zero", "/dev/null", "/dev/tty", "/dev/random"):
        if Path(device).exists():
            assert "is a device" in sentence(device)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_file_that_becomes_a_pipe_between_the_look_and_the_opening(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    os.mkfifo(path)
    regular = tmp_path / "b.png"
    regular.write_bytes(b"x")
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **options: real(regular if self == path else self, **options))
    assert "is a pipe" in sentence(path)


def test_a_file_without_permission(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(GOOD["rgb.png"])

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "may not be read by this user" in sentence(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "sparse.png"
    with path.open("wb") as out:
        out.truncate(10 << 30)
    assert "has 10 GiB, more than the 64 MiB" in sentence(path)


@pytest.mark.parametrize(
    "address",
    ["http://169.254.169.254/a.png", "HTTPS://x/a.png", "file:///etc/passwd", "data:image/png;base64,AA", "s3://b/a"],
)
def test_addresses_are_never_fetched(address):
    assert "nothing is fetched" in sentence(address)


def test_names_in_messages_are_harmless(tmp_path):
    path = tmp_path / "a\n\x1b[31mred\x07.png"
    path.write_bytes(b"no image")
    text = sentence(path)
    assert "\x1b" not in text and "red" in text
    assert len(sentence(str(tmp_path / ("y" * 200) / ("z" * 200)))) < 400


class Endless(io.RawIOBase):
    """A stream without an end, in small pieces."""

    taken = 0

    def readable(self):
        return True

    def read(self, size=-1):
        self.taken += 1000
        return b"\x89PNG\r\n\x1a\n" + bytes(992)


class Failing(io.RawIOBase):
    def read(self, size=-1):
        raise OSError("the tape is torn")


def test_streams():
    endless = Endless()
    assert "more than the 97.7 KiB" in sentence(endless, Limits(max_bytes=100_000))
    assert endless.taken < 200_000
    assert "open as text" in sentence(io.StringIO("text"))
    assert "cannot be read" in sentence(Failing())
    closed = io.BytesIO(GOOD["rgb.png"])
    closed.close()
    assert "cannot be read" in sentence(closed)
    assert "is empty" in sentence(io.BytesIO())
    for nothing in (None, 5, {"image": 1}, [b"x"], object()):
        assert "nothing that can be read" in sentence(nothing)


def test_load_takes_images_and_names_the_rest():
    assert load(GOOD["rgb.png"]).width == 24
    for name in ("sound.png", "film.gif", "text.png"):
        with pytest.raises(SensoriumError, match=r"is audio|is video|no image"):
            load(BAD[name].data)


# kinds


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"RIFF\0\0\0\0WAVEfmt ", "audio"),
        (b"RF64\0\0\0\0WAVEds64", "audio"),
        (b"fLaC\0", "audio"),
        (b"ID3\4\0", "audio"),
        (b"FORM\0\0\0\0AIFFCOMM", "audio"),
        (b"OggS" + bytes(24) + b"\x01vorbis", "audio"),
        (b"OggS" + bytes(24) + b"OpusHead", "audio"),
        (b"OggS" + bytes(24) + b"\x80theora", "video"),
        (b"\xff\xfb\x90\x00" + bytes(413) + b"\xff\xfb\x90\x00", "audio"),
        (b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(9) + b"\xff\xf1", "audio"),
        (b"\0\0\0\x18ftypM4A \0\0\0\0", "audio"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "video"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + b"hdlr" + bytes(8) + b"soun", "audio"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + b"hdlr" + bytes(8) + b"soun" + b"hdlr" + bytes(8) + b"vide", "video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", "video"),
        (b"\0\0\0\x08wide\0\0\0\0mdat", "video"),
        (b"\x1aE\xdf\xa3\x01\0\0\0\0\0\0\x1fB\x82\x84webm" + b"\x86\x85V_VP9", "video"),
        (b"\x1aE\xdf\xa3\x01\0\0\0\0\0\0\x1fB\x82\x84webm" + b"\x86\x86A_OPUS", "audio"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"\0\0\x01\xba", "video"),
        ((b"\x47" + bytes(187)) * 4, "video"),
        (b"FLV\x01\x05", "video"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "image"),
        (b"<svg></svg>", "image"),
        (b"", "unknown"),
        (b"hello", "unknown"),
        (b"BMW is a maker of cars in Germany.", "unknown"),
        (b"\xff\xfeh\0e\0l\0l\0o\0" * 300, "unknown"),
        (b"\xff\xfb" + bytes(3000), "unknown"),
        (b"RIFF\0\0\0\0sfbk", "unknown"),
        (b"#EXTM3U\nhttp://x", "unknown"),
        (bytes(2000), "unknown"),
    ],
)
def test_kinds(data, kind):
    assert kind_of(data) == kind


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600))
def test_any_bytes_have_a_kind(data):
    assert kind_of(data) in ("image", "audio", "video", "unknown")


# any change to a real file


def survives(data: bytes) -> None:
    start = time.thread_time()
    try:
        with warnings.catch_warnings(record=True) as seen:
            image = load_image(data, Limits(max_pixels=4_000_000))
    except SensoriumError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
    else:
        height, width, channels = image.pixels.shape
        assert image.pixels.dtype == np.uint8 and channels == 3 and 0 < height * width <= 4_000_000
        assert image.frames >= 1
    assert time.thread_time() - start < SECONDS
    assert not seen, seen[0].message


@pytest.mark.parametrize("name", GOOD)
def test_every_truncation(name):
    data = GOOD[name]
    for length in range(0, len(data), max(1, len(data) // 150)):
        survives(data[:length])


@pytest.mark.parametrize("name", GOOD)
def test_every_byte_changed(name):
    """Structure stands in the first bytes; each of them takes the values that break most."""
    data = GOOD[name]
    for place in [*range(min(len(data), 120)), *range(120, len(data), max(1, len(data) // 80))]:
        for value in (0, 255, data[place] ^ 0x80, data[place] ^ 1):
            survives(data[:place] + bytes([value]) + data[place + 1 :])


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_any_mutation(name, data):
    """Bytes set, cut out, doubled, swapped with another file's; numbers made huge; PNG checksums made right again."""
    body = bytearray(GOOD[name])
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
            other = GOOD[data.draw(st.sampled_from(sorted(GOOD)))]
            body[place : place + size] = other[place : place + size]
        else:
            body[place : place + 4] = b"\xff\xff\xff\x7f" if what == "huge" else bytes(4)
    survives(repaired(bytes(body)) if name.endswith(".png") and data.draw(st.booleans()) else bytes(body))


def repaired(data: bytes) -> bytes:
    """A PNG whose checksums fit, so that changes get past them."""
    out, place = data[:8], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if length > len(data):
            break
        out += png_chunk(data[place + 4 : place + 8], data[place + 8 : place + 8 + length])
        place += 12 + length
    return out + data[place:]


def test_mutations_in_threads_do_not_disturb_good_files():
    stop, wrong = threading.Event(), []

    def watch():
        while not stop.is_set():
            if (load_image(GOOD["rgb.tif"]).pixels != picture()).any():
                wrong.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for bad in BAD.values():
        survives(bad.data)
    stop.set()
    watcher.join()
    assert not wrong
