"""The kind of a file from its bytes; names and extensions are never asked.

Signatures from the formats' own specifications and https://www.iana.org/assignments/media-types/ .
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Kind = Literal["image", "audio", "video", "unknown"]


class Sniffed(NamedTuple):
    """What a file is: its kind, and the name of its format ("PNG", "MP3", "a web page"), empty where unknown."""

    kind: Kind
    format: str


_UNKNOWN = Sniffed("unknown", "")
_SIGNATURES: tuple[tuple[bytes, Kind, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image", "PNG"),
    (b"\xff\xd8\xff", "image", "JPEG"),
    (b"GIF87a", "image", "GIF"),
    (b"GIF89a", "image", "GIF"),
    (b"II*\x00", "image", "TIFF"),
    (b"MM\x00*", "image", "TIFF"),
    (b"II+\x00", "image", "TIFF"),
    (b"MM\x00+", "image", "TIFF"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "image", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "image", "JPEG 2000"),
    (b"\xff\x0a", "image", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "image", "JPEG XL"),
    (b"8BPS", "image", "Photoshop"),
    (b"\x00\x00\x01\x00", "image", "icon"),
    (b"qoif", "image", "QOI"),
    (b"fLaC", "audio", "FLAC"),
    (b"ID3", "audio", "MP3"),
    (b"#!AMR", "audio", "AMR"),
    (b".snd", "audio", "AU"),
    (b"caff", "audio", "CAF"),
    (b"wvpk", "audio", "WavPack"),
    (b"MAC ", "audio", "Monkey's Audio"),
    (b"\x00\x00\x01\xba", "video", "MPEG"),
    (b"\x00\x00\x01\xb3", "video", "MPEG"),
    (b"FLV\x01", "video", "FLV"),
    (b"0&\xb2u\x8ef\xcf\x11", "video", "Windows Media"),
    (b"YUV4MPEG2 ", "video", "YUV4MPEG2"),
    (b"%PDF-", "unknown", "a PDF document"),
    (b"PK\x03\x04", "unknown", "a zip archive or office document"),
    (b"\x1f\x8b", "unknown", "a gzip archive"),
    (b"GGUF", "unknown", "a GGUF model"),
    (b"\x7fELF", "unknown", "a program"),
)
_RIFF: dict[bytes, Sniffed] = {
    b"WEBP": Sniffed("image", "WebP"),
    b"WAVE": Sniffed("audio", "WAV"),
    b"AVI ": Sniffed("video", "AVI"),
}
_BRANDS: dict[bytes, Sniffed] = {
    b"avif": Sniffed("image", "AVIF"),
    b"avis": Sniffed("image", "AVIF"),
    b"heic": Sniffed("image", "HEIC"),
    b"heix": Sniffed("image", "HEIC"),
    b"hevc": Sniffed("image", "HEIC"),
    b"mif1": Sniffed("image", "HEIC"),
    b"msf1": Sniffed("image", "HEIC"),
    b"M4A ": Sniffed("audio", "M4A"),
    b"M4B ": Sniffed("audio", "M4A"),
    b"crx ": Sniffed("image", "camera raw"),
}
_QUICKTIME = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}
# kbit/s of MPEG-1 and MPEG-2 layer III, and Hz by version: enough to find the second frame of an MP3.
_MP3_RATES = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def kind_of(data: bytes) -> Kind:
    """The kind of an encoded file: "image", "audio", "video" or "unknown".

    The first 64 kB are enough. Animated GIF, PNG and WebP are images; an Ogg, WebM or MP4 file is "audio" when its
    header names only sound tracks. A known image format that is not decoded here (HEIC, AVIF, ...) is an image still.
    """
    return sniff(data).kind


def sniff(data: bytes) -> Sniffed:
    """The kind and the format of an encoded file."""
    for signature, kind, name in _SIGNATURES:
        if data.startswith(signature):
            return Sniffed(kind, name)
    if data[:4] in (b"RIFF", b"RF64", b"RIFX", b"BW64"):
        return _RIFF.get(data[8:12], _UNKNOWN)
    if data[:2] == b"BM" and len(data) >= 26 and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return Sniffed("image", "BMP")
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return Sniffed("audio", "AIFF")
    if data[:4] == b"OggS":
        return _ogg(data[:4096])
    if data[:4] == b"\x1aE\xdf\xa3":
        return _matroska(data[:65536])
    if data[4:8] == b"ftyp":
        return _brand(data)
    if data[4:8] in _QUICKTIME and data[:2] == b"\0\0":
        return Sniffed("video", "QuickTime")
    if len(data) >= 564 and all(data[place] == 0x47 for place in (0, 188, 376)):
        return Sniffed("video", "MPEG-TS")
    if _is_adts(data):
        return Sniffed("audio", "AAC")
    if _is_mp3(data):
        return Sniffed("audio", "MP3")
    return _text(data[:1024])


def _brand(data: bytes) -> Sniffed:
    """ISO base media: the first known brand decides; plain MP4 is audio if it has sound tracks only."""
    size = min(int.from_bytes(data[:4], "big"), 4096)
    brands = [data[8:12], *(data[place : place + 4] for place in range(16, max(16, size - 3), 4))]
    for brand in brands:
        if brand in _BRANDS:
            return _BRANDS[brand]
    # A handler box names the kind of its track 8 bytes after its name (ISO/IEC 14496-12, 8.4.3).
    handlers = {match[1] for match in re.finditer(rb"hdlr.{8}(vide|soun)", data, re.DOTALL)}
    if handlers == {b"soun"}:
        return Sniffed("audio", "M4A")
    return Sniffed("video", "QuickTime" if data[8:12] == b"qt  " else "MP4")


def _ogg(head: bytes) -> Sniffed:
    if b"\x80theora" in head:
        return Sniffed("video", "Ogg")
    if any(mark in head for mark in (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")):
        return Sniffed("audio", "Ogg")
    return _UNKNOWN


def _matroska(head: bytes) -> Sniffed:
    name = "WebM" if b"webm" in head[:64] else "Matroska"
    # Codec ids are A_OPUS, V_VP9 and so on, in an element with the id 86.
    video = re.search(rb"\x86[\x80-\xff]V_[A-Z]", head)
    audio = re.search(rb"\x86[\x80-\xff]A_[A-Z]", head)
    return Sniffed("audio" if audio and not video else "video", name)


def _is_adts(data: bytes) -> bool:
    """AAC: a frame header whose length leads to a second one."""
    if len(data) < 9 or data[0] != 0xFF or data[1] & 0xF6 != 0xF0:
        return False
    length = (data[3] & 3) << 11 | data[4] << 3 | data[5] >> 5
    return length > 7 and (len(data) == length or data[length : length + 1] == b"\xff")


def _is_mp3(data: bytes) -> bool:
    """MP3 without an ID3 tag: a frame header whose length leads to a second one (the mark alone is 11 bits)."""
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE6 != 0xE2:
        return False
    version, rate, hertz = data[1] >> 3 & 3, data[2] >> 4, data[2] >> 2 & 3
    if version == 1 or not 0 < rate < 15 or hertz == 3:
        return False
    bits = _MP3_RATES[3 if version == 3 else 2][rate] * 1000
    length = (144 if version == 3 else 72) * bits // MP3_HZ[version][hertz] + (data[2] >> 1 & 1)
    return len(data) <= length + 1 or (data[length] == 0xFF and data[length + 1] >= 0xE0)


def _text(head: bytes) -> Sniffed:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return Sniffed("unknown", "a web page")
    if start.startswith(b"<svg") or (start.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in start):
        return Sniffed("image", "SVG")
    if start.startswith(b"#extm3u"):
        return Sniffed("unknown", "a playlist")
    return _UNKNOWN
