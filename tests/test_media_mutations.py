"""Real image files, changed in every way: an image of sane shape or one sentence comes out, quickly."""

from __future__ import annotations

import threading
import time
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bad_files import bad_images
from good_images import good_images, picture, png_chunk
from mutations import mutated
from sensorium.errors import SensoriumError
from sensorium.media import Limits, load_image

GOOD = good_images()
BAD = {bad.name: bad for bad in bad_images()}
SECONDS = 2.0  # of this thread on the processor, for any one file, so that a busy machine fails no test


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
    """As `mutated` has it, and PNG checksums made right again."""
    changed = mutated(name, GOOD, data)
    survives(repaired(changed) if name.endswith(".png") and data.draw(st.booleans()) else changed)


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
