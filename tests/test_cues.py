"""Subtitles: whatever words come at whatever times, every cue keeps the rules and no text is lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.tasks.cue_rules import GAP, LINE, LONGEST, Cue, badness, broken_rules, conformity, needed
from sensorium.tasks.cues import LATEST, to_cues
from sensorium.tasks.subtitle_files import to_srt, to_vtt

TEXT = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps in the sun. Nobody knows why; perhaps it was "
    "tired, or perhaps the dog had told it a story that went on for hours. When it wakes, it will be hungry again."
)


def spoken(texts, word=0.25, pause=0.05, start=0.0):
    """Words that are spoken evenly."""
    found = []
    for text in texts.split():
        found.append((text, start, start + word))
        start += word + pause
    return found


def joined(cues):
    return "".join("".join(cue.text.split()) for cue in cues)


def test_ordinary_speech():
    cues = to_cues(spoken(TEXT))
    report = conformity(cues)
    assert report.conforming == report.cues == len(cues) and report.latest == 0
    assert " ".join(cue.text for cue in cues) == TEXT
    made, well = report.breaks
    assert well >= 0.8 * made
    assert cues[0].start == 0 and any(len(cue.lines) == 2 for cue in cues)


def test_where_it_breaks():
    """Sentences begin new cues where there is time, lines break at commas and before conjunctions."""
    cues = to_cues(spoken("I went home early. She stayed there all night because her friends were late again."))
    assert cues[0].text == "I went home early."
    assert cues[1].lines == ("She stayed there all night", "because her friends were late again.")
    pairs = {"home. She": 0, "home, she": 1, "home and": 2, "home in": 3, "big home": 5, "the home": 8}
    assert {pair: badness(*pair.split()) for pair in pairs} == pairs


def test_pauses_part_cues():
    words = spoken("one two three four") + spoken("five six seven eight", start=4.0)
    cues = to_cues(words)
    assert [cue.text for cue in cues] == ["one two three four", "five six seven eight"]
    assert cues[1].start == 4000 and cues[0].end < 2000


def test_a_short_word_stands_long_enough_and_a_slow_one_not_too_long():
    assert [(cue.start, cue.end) for cue in to_cues([("Yes.", 1.0, 1.1)])] == [(1000, 1834)]
    assert [(cue.start, cue.end) for cue in to_cues([("Yes.", 1.0, 31.0)])] == [(1000, 1000 + LONGEST)]


def test_the_last_cue_ends_with_the_medium_where_it_can():
    (cue,) = to_cues([("Bye.", 9.9, 10.0)], until=10.0)
    assert cue.end == 10_000 and cue.end - cue.start >= 834
    (cue,) = to_cues([("Bye.", 0.0, 0.1)], until=0.2)
    assert not broken_rules(cue)


def test_a_burst_runs_on_into_the_pause():
    """Eight seconds at 24 characters a second, then silence: late, and still readable."""
    words = spoken("abcdefghijk " * 16, word=0.5, pause=0.0) + spoken("later", start=20.0)
    cues = to_cues(words)
    report = conformity(cues)
    assert report.conforming == report.cues
    assert 0 < report.latest <= LATEST / 1000 and cues[-1].late == 0


def test_speech_nobody_can_read_is_said_to_be():
    """A minute at 60 characters a second: cues stay near their words, and the report names them."""
    cues = to_cues(spoken("abcdefghijk " * 300, word=0.2, pause=0.0))
    report = conformity(cues)
    assert joined(cues) == "abcdefghijk" * 300
    assert report.broken["speed"] > 0.5 * report.cues and report.conforming < report.cues
    assert [report.broken[rule] for rule in ("lines", "characters", "short", "long", "gap")] == [0] * 5
    assert report.latest <= LATEST / 1000 and "speed" in str(report)


WORDS = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8"), min_size=0, max_size=12)
        | st.sampled_from([*TEXT.split(), "x" * 42, "y" * 43, "z" * 200, "two words", "", "\n", "a\u2028b"]),
        st.floats(0, 4),  # seconds after the last one began
        st.floats(0, 40) | st.floats(0, 0.6),
    ),
    max_size=60,
)


def timed(steps, shrink=1.0):
    found, clock = [], 0.0
    for text, step, length in steps:
        clock += step * shrink
        found.append((text, clock, clock + length))
    return found


@settings(max_examples=400, deadline=None)
@given(WORDS, st.sampled_from([1.0, 0.2, 0.03, 0.0]), st.none() | st.floats(0, 200))
def test_every_cue_keeps_the_rules(steps, shrink, until):
    words = timed(steps, shrink)
    cues = to_cues(words, until)
    wanted = "".join("".join(c if c.isprintable() else " " for c in text) for text, _, _ in words)
    assert joined(cues) == "".join(wanted.split())
    for number, cue in enumerate(cues):
        previous = cues[number - 1] if number else None
        rules = broken_rules(cue, previous)
        assert set(rules) <= {"speed"}
        assert cue.spoken is not None
        if number + 1 < len(cues):
            assert cue.start >= cue.spoken
            if rules:  # only when waiting would part text and voice by more than seconds
                waiting = cue.start + needed(len(cue.text)) + GAP
                assert waiting - cues[number + 1].spoken > LATEST
        else:
            assert not rules


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(TEXT.split()), st.floats(0, 0.5)), max_size=80))
def test_speech_at_a_usual_pace_conforms_and_is_in_time(steps):
    """Up to 16 characters a second, anything conforms, and nothing comes later than half a second."""
    words, clock = [], 0.0
    for text, pause in steps:
        length = (len(text) + 1) / 16
        words.append((text, clock, clock + length))
        clock += length + pause
    report = conformity(to_cues(words))
    assert report.conforming == report.cues and report.latest <= 1.0


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(), st.floats()), max_size=8))
def test_times_that_are_none(words):
    cues = to_cues([(text, start % 1e4, end % 1e4) for text, start, end in words])
    assert joined(cues) == "".join(text for text, _, _ in words)
    assert all(not set(broken_rules(cue)) - {"speed"} for cue in cues)


def test_the_report_sees_every_breach():
    good = Cue(0, 2000, ("Hello there.",))
    bad = {
        "lines": Cue(3000, 5000, ("a", "b", "c")),
        "characters": Cue(3000, 6000, ("x" * (LINE + 1),)),
        "short": Cue(3000, 3833, ("a",)),
        "long": Cue(3000, 10_001, ("a",)),
        "speed": Cue(3000, 4000, ("x" * 21,)),
        "gap": Cue(2083, 4000, ("a",)),
    }
    for rule, cue in bad.items():
        report = conformity([good, cue])
        assert (report.conforming, report.broken[rule]) == (1, 1) and sum(report.broken.values()) == 1
        assert report.first == [(2, cue.start / 1000, [rule])] and rule in str(report)
    assert conformity([]).to_dict()["share"] == 1 and "no cues" in str(conformity([]))


def test_files():
    cues = [Cue(0, 1000, ("One & <b>two</b>", "--> three")), Cue(3_725_004, 3_727_000, ("Ende",))]
    assert to_srt(cues) == (
        "1\n00:00:00,000 --> 00:00:01,000\nOne & <b>two</b>\n-> three\n\n2\n01:02:05,004 --> 01:02:07,000\nEnde\n"
    )
    vtt = to_vtt(cues)
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nOne &amp; &lt;b&gt;two&lt;/b&gt;\n--&gt; three\n\n")
    assert vtt.count("-->") == 2 and to_srt([]) == "" and re.fullmatch(r"WEBVTT\s*", to_vtt([]))


@pytest.mark.parametrize("characters", [0, 1, 16, 17, 42, 85])
def test_needed(characters):
    assert not broken_rules(Cue(0, needed(characters), ("x" * min(characters, LINE) or "x",)))
