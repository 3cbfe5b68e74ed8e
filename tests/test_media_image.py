"""The door for images: everything that is an image comes in right, everything else gives one sentence, quickly."""

from __future__ import annotations

import hashlib
import io
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from bad_files import bad_images
from good_images import encode, exif, good_images, picture, png, png_chunk
from sensorium.errors import SensoriumError
from sensorium.media import Image, kind_of, load_image
from test_media_refusals import SECONDS, sentence

GOOD = good_images()
BAD = {bad.name: bad for bad in bad_images()}


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
