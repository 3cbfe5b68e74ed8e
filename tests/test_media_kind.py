"""The kind of a file from its bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.media import kind_of


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
