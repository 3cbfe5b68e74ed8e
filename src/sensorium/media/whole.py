"""Whether a file of sound is there whole, by what its container says of itself; FFmpeg decodes half a file in silence.

Only lengths are compared that a container states for this end and that programs do keep: an Ogg page has a number and
a checksum (RFC 3533), the segment of a Matroska or WebM file and the RIFF chunk of an AVI file have a size, and the
first frame of most MP3 files holds the number of frames ("Xing" or "Info"). What is written to a pipe says nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import IO

from sensorium.media.containers.base import CUT_OFF, DAMAGED, Broken
from sensorium.media.kind import MP3_HZ

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_PIECE = 1 << 16
_STREAMED = 0x7FFF0000  # sizes from here on stand for unknown ones in RIFF files
_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"


def check_whole(handle: IO[bytes], demuxer: str) -> None:
    """Raise Broken for a file that ends early or lacks a stretch, as far as its container shows it. The place in the
    file is kept."""
    place = handle.tell()
    try:
        if demuxer == "ogg":
            _check_ogg(handle)
        elif demuxer in ("matroska", "avi"):
            end = _end_of_segment(handle) if demuxer == "matroska" else _end_of_riff(handle)
            size = handle.seek(0, 2)
            if size < end:
                raise Broken(f"{CUT_OFF} (it declares {end:,} bytes and holds {size:,})")
            if demuxer == "matroska":
                _check_elements(handle, end or size)
    finally:
        handle.seek(place)


def _check_ogg(handle: IO[bytes]) -> None:
    numbers: dict[bytes, int] = {}  # by the serial of a stream: the number of its next page
    unfinished: dict[bytes, bool] = {}  # whether its last packet goes on in a page to come
    end = 0
    for place, head, body in _pages(handle):
        serial, number, first = head[14:18], int.from_bytes(head[18:22], "little"), head[5] & 2
        # Of several recordings in a row, the number begins anew. A last page without the mark of the end is no sign of
        # a cut: Telegram on Android writes none.
        if _checksum(head[:22] + bytes(4) + head[26:] + body) != int.from_bytes(head[22:26], "little"):
            raise Broken(f"{DAMAGED} at byte {place:,}")
        if not first and number > numbers.get(serial, number):
            raise Broken(f"{DAMAGED} (a stretch is missing before byte {place:,})")
        numbers[serial] = number + 1
        unfinished[serial] = head[-1] == 255 if head[26] else unfinished.get(serial, False)
        end = place + len(head) + len(body)
    if any(unfinished.values()):
        raise Broken(f"{CUT_OFF} after byte {end:,}")


def _pages(handle: IO[bytes]) -> Iterator[tuple[int, bytes, bytes]]:
    """(place, header with its table, content) of each page of an Ogg file; what stands between pages is passed over."""
    place = 0
    while True:
        handle.seek(place)
        head = handle.read(27)
        if not head:
            return
        if head[:4] != b"OggS"[: len(head)]:
            found = _find(handle, place)
            if found is None:
                return
            place = found
            continue
        if len(head) == 27:
            head += handle.read(head[26])
        size = sum(head[27:])
        body = handle.read(size)
        if len(head) < 27 or len(head) < 27 + head[26] or len(body) < size:
            raise Broken(f"{CUT_OFF} after byte {place:,}")
        yield place, head, body
        place += len(head) + size


def _find(handle: IO[bytes], place: int) -> int | None:
    """Where the next page begins; None where there is none."""
    handle.seek(place)
    held = b""
    while piece := handle.read(_PIECE):
        held += piece
        found = held.find(b"OggS")
        if found >= 0:
            return place + found
        place, held = place + len(held) - 3, held[-3:]
    return None


def _checksum(page: bytes) -> int:
    """Ogg's CRC: the polynomial of zlib's, but bits the other way round, from 0 and not inverted."""
    turned = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{turned:032b}"[::-1], 2)


def _end_of_segment(handle: IO[bytes]) -> int:
    """The byte behind the segment of a Matroska file (RFC 9559); 0 where it is not said."""
    handle.seek(0)
    head = handle.read(_PIECE)
    place = 4
    size, width, _ = _size(head, place)  # of the EBML header
    place += width + size
    if head[place : place + 4] != _SEGMENT:
        return 0
    size, width, known = _size(head, place + 4)
    return place + 4 + width + size if known else 0


def _check_elements(handle: IO[bytes], end: int) -> None:
    """Whether each element of a Matroska file begins where the last one ends, blocks of sound included; what is in
    them is not looked at."""
    place, cluster_end = 0, end
    while place < end:
        handle.seek(place)
        head = handle.read(12)
        width = 9 - head[0].bit_length()
        size, taken, known = _size(head, width)
        begin = place + width + taken
        if width > 4:  # longer names there are none
            raise Broken(f"{DAMAGED} at byte {place:,}")
        if head[:width] in (_SEGMENT, _CLUSTER):  # go into it
            cluster_end = begin + size if known and head[:width] == _CLUSTER else end
            if cluster_end > end:
                raise Broken(f"{CUT_OFF} after byte {place:,}")
        elif not known or begin + size > cluster_end:
            raise Broken(f"{DAMAGED} or cut off at byte {place:,}")
        else:
            begin += size
        place = begin
        if place >= cluster_end:
            cluster_end = end


def _size(data: bytes, place: int) -> tuple[int, int, bool]:
    """(size, bytes that it takes, whether it is known) of an EBML element."""
    first = data[place] if place < len(data) else 0
    if not first:
        return 0, 1, False
    width = 9 - first.bit_length()
    value = int.from_bytes(data[place : place + width], "big") & ~(1 << 7 * width)
    return value, width, value != (1 << 7 * width) - 1


def _end_of_riff(handle: IO[bytes]) -> int:
    handle.seek(4)
    size = int.from_bytes(handle.read(4), "little")
    return size + 8 if size < _STREAMED else 0


def mp3_seconds(handle: IO[bytes]) -> float:
    """The length of an MP3 file as its frame "Xing" or "Info" has it; 0 without one. The place in the file is kept."""
    place = handle.tell()
    try:
        handle.seek(0)
        tag = handle.read(10)
        after = sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(tag[6:])) + 10 if tag[:3] == b"ID3" else 0
        handle.seek(after)
        head = handle.read(4096)
    finally:
        handle.seek(place)
    for mark in (b"Xing", b"Info"):
        found = head.find(mark)
        for side in (32, 17, 9):  # bytes of a frame between its header and the mark: by version and channels
            frame = head[max(0, found - side - 4) :]
            if found < side + 4 or frame[0] != 255 or frame[1] & 0xE6 != 0xE2 or not head[found + 7] & 1:
                continue
            version, hertz = frame[1] >> 3 & 3, frame[2] >> 2 & 3
            if version == 1 or hertz == 3:
                continue
            frames = int.from_bytes(head[found + 8 : found + 12], "big")
            return frames * (1152 if version == 3 else 576) / MP3_HZ[version][hertz]
    return 0.0
