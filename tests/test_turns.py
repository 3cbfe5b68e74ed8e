"""The turn manager: when a message ends, what interrupts an answer, and what the history then holds of it."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.answer import Answer, Stream
from sensorium.errors import SensoriumError, UsageError
from sensorium.messages import Message
from sensorium.turns import (
    Activity,
    ActivityOptions,
    Committed,
    Done,
    Failed,
    Interrupted,
    Sound,
    SpeechStarted,
    SpeechStopped,
    State,
    Turns,
)
from sensorium.turns.activity import FRAME, RATE, Signal
from sensorium.turns.recording import Recording

UNIT = 100  # samples that a unit of the fake voice takes
SPACE = 99


@dataclass
class Voice:
    """Says a unit a letter, a chunk a word, as soon as the word is over."""

    sink: Any
    units: list[int] = field(default_factory=list)
    chunks: list[tuple[int, int]] = field(default_factory=list)

    def word(self, word: str) -> None:
        self.units += [*map(ord, word), SPACE]
        self.chunks.append((len(self.units), UNIT * len(self.units)))
        self.sink(np.zeros(UNIT * (len(word) + 1), np.float32))


class FakeEngine:
    """Answers with the same words; `gates` hold it back behind so many pieces until they are opened."""

    rate, space = 24_000, SPACE

    def __init__(self, words=("Yes", "I", "can", "hear", "you"), aloud=True, error=None):
        self.words, self.aloud, self.error = words, aloud, error
        self.gates: dict[int, threading.Event] = {}
        self.reached: dict[int, threading.Event] = {}
        self.asked: list[list[Message]] = []
        self.prepared: list[list[Message]] = []
        self.cancelled = 0
        self.obeys = True

    def hold(self, pieces):
        self.gates[pieces], self.reached[pieces] = threading.Event(), threading.Event()

    def speaker(self, sink):
        return Voice(sink) if self.aloud else None

    def prepare(self, messages):
        self.prepared.append(list(messages))

    def respond(self, messages, speaker, cancel):
        self.asked.append(list(messages))
        if self.error:
            raise self.error
        return Stream(self._pieces(speaker, cancel))

    def _pieces(self, speaker, cancel):
        shown = []
        for number, word in enumerate(self.words):
            if number in self.gates:
                self.reached[number].set()
                assert self.gates[number].wait(10)
            if cancel.is_set() and self.obeys:
                self.cancelled += 1
                break
            piece = word if not number else " " + word
            shown.append(piece)
            yield piece
            # A word is said when the next shows that it is over, as by `speech.Spoken`.
            if speaker and number:
                speaker.word(self.words[number - 1])
        else:
            if speaker and self.words:
                speaker.word(self.words[-1])
        yield Answer("".join(shown), finish_reason="stop")


def loud():
    """A detector that takes sound for speech."""
    return lambda frame: float(np.abs(frame).mean() > 0.1)


def voice(seconds):
    return np.full(round(seconds * RATE / FRAME) * FRAME, 0.5, np.float32)


def quiet(seconds):
    return np.zeros(round(seconds * RATE / FRAME) * FRAME, np.float32)


def start(engine=None, **options):
    events: list = []
    turns = Turns(engine or FakeEngine(), events.append, detector=options.pop("detector", loud), **options)
    return turns, events


def kinds(events):
    return [type(event).__name__ for event in events]


def spoken(turns):
    """The history as (role, text, or the length of the sound)."""
    return [(m.role, m.text or len(m.media[0].samples)) for m in turns.messages]


def ask(turns, seconds=1.0):
    turns.push(np.concatenate([quiet(0.5), voice(seconds), quiet(1.0)]))


# Voice activity
# ----------------------------------------------------------------------------------------------------------------------


def signals(frames, **options):
    activity = Activity(ActivityOptions(**options))
    return [(s.name, activity.at // FRAME) for p in frames if (s := activity.push(p)) is not Signal.NOTHING], activity


def test_speech_begins_at_its_first_frame_and_ends_behind_its_last():
    found, activity = signals([0.1] * 10 + [0.9] * 20 + [0.1] * 30)
    assert found == [("BEGUN", 14), ("PAUSED", 37), ("ENDED", 49)]  # onset 0.1 s, tail 0.2 s, hangover 0.6 s
    assert (activity.begun, activity.ended) == (10 * FRAME, 30 * FRAME)


def test_a_click_is_no_speech_and_a_pause_does_not_split():
    assert signals([0.9, 0.9, 0.9, 0.1] * 20)[0] == []
    found, _ = signals([0.9] * 10 + [0.1] * 18 + [0.9] * 10 + [0.1] * 19)
    assert [name for name, _ in found] == ["BEGUN", "PAUSED", "PAUSED", "ENDED"]


def test_between_the_thresholds_speech_goes_on_and_quiet_stays():
    assert signals([0.4] * 50)[0] == []
    assert signals([0.9, 0.4, 0.4, 0.4])[0] == [("BEGUN", 4)]
    assert [name for name, _ in signals([0.9] * 10 + [0.4] * 50)[0]] == ["BEGUN"]
    assert [name for name, _ in signals([0.9] * 10 + [0.1] + [0.4] * 18)[0]] == ["BEGUN", "PAUSED", "ENDED"]


def test_speech_without_end_is_ended():
    found, _ = signals([0.9] * 98, longest_s=1.0)
    assert [name for name, _ in found] == ["BEGUN", "ENDED", "BEGUN", "ENDED", "BEGUN", "ENDED"]


def test_options_are_checked():
    for wrong in ({"threshold": 2}, {"release": 0.9}, {"tail_s": 1.0}, {"hangover_s": -1}, {"onset_s": "x"}):
        with pytest.raises(UsageError):
            ActivityOptions(**wrong)


def test_a_recording_is_cut_by_the_samples_of_the_stream():
    recording = Recording(1000)
    stream = np.arange(1000, 1000 + 8 * FRAME, dtype=np.float32)
    for frame in stream.reshape(-1, FRAME):
        recording.add(frame)
    recording.forget(1000 + 2 * FRAME + 5)
    assert recording.begin == 1000 + 2 * FRAME
    assert np.array_equal(recording.cut(3000, 4000), stream[2000:3000])
    assert np.array_equal(recording.cut(0, 10**6), stream[2 * FRAME :])


# A turn
# ----------------------------------------------------------------------------------------------------------------------


def test_a_spoken_question_is_answered():
    engine = FakeEngine()
    turns, events = start(engine)
    with turns:
        ask(turns)
        turns.wait(10, played=False)
        assert turns.state is State.ANSWERING and spoken(turns)[1:] == []
        turns.played(1, 10**9)
        assert turns.state is State.IDLE
    one = ["Text", "Text", "Sound", "Text", "Sound", "Text", "Sound", "Text", "Sound", "Sound"]
    assert kinds(events) == ["SpeechStarted", "SpeechStopped", "Committed", *one, "Done", "Played"]
    begin, stop, commit = events[:3]
    assert (begin.at, stop.at) == (round(0.5 * RATE / FRAME) * FRAME, begin.at + len(voice(1)))
    assert (commit.begin, commit.end) == (begin.at - 4800, stop.at + 3200)
    assert spoken(turns) == [("user", commit.end - commit.begin), ("assistant", "Yes I can hear you")]
    assert engine.asked == [[commit.message]]


def test_what_was_prepared_in_the_pause_is_what_is_committed():
    """So the model finds the message encoded: the same sound, by its digest."""
    engine = FakeEngine()
    turns, _ = start(engine)
    with turns:
        turns.push(np.concatenate([voice(1), quiet(0.3)]))
        turns.wait(10)
        turns.push(np.concatenate([voice(1), quiet(0.3)]))
        turns.wait(10)
        turns.push(quiet(0.5))
        turns.wait(10, played=False)
    assert len(engine.prepared) == 2
    sounds = [messages[-1].media[0] for messages in [*engine.prepared, *engine.asked]]
    assert sounds[1].sha256 == sounds[2].sha256 and np.array_equal(sounds[1].samples, sounds[2].samples)
    assert len(sounds[0].samples) < len(sounds[1].samples)


def test_long_speech_is_prepared_while_it_lasts():
    engine = FakeEngine()
    turns, events = start(engine)
    with turns:
        for _ in range(70):
            turns.push(voice(1))
            turns.wait(10)
        assert [len(m[-1].media[0].samples) for m in engine.prepared] == [30 * RATE, 60 * RATE]
        assert kinds(events) == ["SpeechStarted"]


def test_silence_and_clicks_commit_nothing_and_take_no_memory():
    turns, events = start()
    with turns:
        for _ in range(200):
            turns.push(np.concatenate([quiet(0.4), voice(0.06)]))
        assert turns._hearing._recording.end - turns._hearing._recording.begin < RATE
    assert events == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=40))
def test_the_size_of_chunks_changes_nothing(sizes):
    stream = np.concatenate([quiet(0.7), voice(1), quiet(0.4), voice(0.5), quiet(1), voice(0.05), quiet(1), voice(0.3)])
    stream = np.concatenate([stream, quiet(2)])
    whole, events = start(FakeEngine(()))
    with whole:
        for piece in np.split(stream, np.cumsum(sizes)):
            whole.push(piece)
            whole.wait(10)
    wanted = [("SpeechStarted", 11264), ("SpeechStopped", 41472), ("SpeechStarted", 74240), ("SpeechStopped", 78848)]
    assert [(type(e).__name__, e.at) for e in events if isinstance(e, SpeechStarted | SpeechStopped)] == wanted
    commits = [(e.begin, e.end) for e in events if isinstance(e, Committed)]
    assert commits == [(11264 - 4800, 41472 + 3200), (74240 - 4800, 78848 + 3200)]
    for event in events:
        if isinstance(event, Committed):
            assert np.array_equal(event.message.media[0].samples, stream[event.begin : event.end])


def test_only_float_samples_are_taken():
    turns, _ = start()
    with turns, pytest.raises(UsageError, match="float32"):
        turns.push(np.zeros(10, np.int16))


# Barge-in
# ----------------------------------------------------------------------------------------------------------------------

WORDS = ["Yes", "I", "can", "hear", "you"]
ENDS = np.cumsum([len(word) + 1 for word in WORDS]) * UNIT - UNIT  # the sample behind each word, before its space


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_the_history_holds_the_words_whose_sound_was_played(count, off):
    heard = ENDS[count - 1] + off if count else 50
    turns, events = start()
    with turns:
        ask(turns)
        turns.wait(10, played=False)
        turns.played(1, heard)
        ask(turns)
        turns.wait(10, played=False)
    whole = " ".join(WORDS[: count - (off < 0)] if count else [])
    cut = next(event for event in events if isinstance(event, Interrupted))
    assert (cut.text, cut.samples) == (whole, heard)
    assert spoken(turns)[1:-1] == ([("assistant", whole)] if whole else [])


@pytest.mark.parametrize("pieces", [0, 1, 3, 4])
def test_generation_ends_when_the_user_speaks(pieces):
    engine = FakeEngine()
    engine.hold(pieces)
    turns, events = start(engine)
    with turns:
        ask(turns)
        assert engine.reached[pieces].wait(10)
        turns.played(1, 10**9)
        turns.push(np.concatenate([voice(0.3)]))
        assert turns.state is State.LISTENING
        at = len(events)
        assert kinds(events)[-2:] == ["Interrupted", "SpeechStarted"]
        engine.gates.pop(pieces).set()
        turns.wait(10)
        assert engine.cancelled == 1
        assert events[at:] == []  # nothing more of the old answer
        assert events[at - 2].samples == sum(len(e.samples) for e in events if isinstance(e, Sound))
        assert events[at - 2].text == " ".join(WORDS[: max(0, pieces - 1)])  # a word is said when the next has come
        turns.push(quiet(1))
        turns.wait(10, played=False)
    assert [e.turn for e in events if isinstance(e, Done)] == [2]


def test_a_model_that_goes_on_is_not_heard():
    engine = FakeEngine()
    engine.obeys = False
    engine.hold(2)
    turns, events = start(engine)
    with turns:
        turns.say("Hello")
        assert engine.reached[2].wait(10)
        turns.interrupt()
        count = len(events)
        engine.gates.pop(2).set()
        turns.wait(10)
        assert len(events) == count and turns.state is State.IDLE


def test_a_cut_answer_is_what_the_model_is_shown():
    engine = FakeEngine()
    turns, _ = start(engine)
    with turns:
        for _ in range(3):
            ask(turns)
            turns.wait(10, played=False)
            turns.played(turns._turn, int(ENDS[1]))
    assert [[m.text for m in asked if m.role == "assistant"] for asked in engine.asked] == [
        [],
        ["Yes I"],
        ["Yes I"] * 2,
    ]


def test_late_reports_of_an_older_answer_are_ignored():
    turns, events = start()
    with turns:
        ask(turns)
        turns.wait(10, played=False)
        ask(turns)
        turns.wait(10, played=False)
        turns.played(1, 10**9)
        assert turns.state is State.ANSWERING
        turns.played(2, 10**9)
        assert turns.state is State.IDLE and kinds(events).count("Played") == 1


def test_without_a_voice_what_was_shown_counts():
    engine = FakeEngine(aloud=False)
    engine.hold(2)
    turns, events = start(engine)
    with turns:
        turns.say("Hello")
        assert engine.reached[2].wait(10)
        turns.say("Stop")
        engine.gates.pop(2).set()
        turns.wait(10)
    assert spoken(turns) == [
        ("user", "Hello"),
        ("assistant", "Yes I"),
        ("user", "Stop"),
        ("assistant", " ".join(WORDS)),
    ]
    assert kinds(events)[-2:] == ["Done", "Played"]


def test_an_error_is_reported_and_its_message_forgotten():
    engine = FakeEngine(error=SensoriumError("too long."))
    turns, events = start(engine)
    with turns:
        turns.say("Hello")
        turns.wait(10)
        assert isinstance(events[-1], Failed) and str(events[-1].error) == "too long."
        assert (turns.messages, turns.state) == ([], State.IDLE)
        engine.error = None
        turns.say("Again")
        turns.wait(10, played=False)
        assert isinstance(events[-1], Done)


def test_old_messages_are_forgotten_half_at_a_time():
    """So that memory is bounded, and prompts seldom begin in a new way."""
    engine = FakeEngine(aloud=False)
    turns, _ = start(engine, messages=[Message("system", "Be brief.")], remembered=6)
    with turns:
        for number in range(6):
            turns.say(str(number))
            turns.wait(10)
    users = [[m.text for m in asked if m.role != "assistant"] for asked in engine.asked]
    assert [u[1:] for u in users] == [["0"], ["0", "1"], ["0", "1", "2"], ["2", "3"], ["2", "3", "4"], ["4", "5"]]
    assert all(u[0] == "Be brief." for u in users) and all(asked[1].role == "user" for asked in engine.asked)


# Push to talk
# ----------------------------------------------------------------------------------------------------------------------


def test_push_to_talk_commits_on_release_whatever_the_pauses():
    turns, events = start(hold=True)
    with turns:
        turns.push(voice(1))  # nobody has pressed
        turns.press()
        turns.push(np.concatenate([voice(1), quiet(3), voice(1), quiet(0.1)]))
        assert kinds(events) == ["SpeechStarted"]
        turns.release()
        turns.push(voice(1))
        turns.wait(10, played=False)
        turns.press()
        assert kinds(events)[-1] == "Interrupted"
        turns.push(quiet(1))
        turns.release()
        assert kinds(events)[-1] == "Discarded" and turns.state is State.IDLE
    commit = next(event for event in events if isinstance(event, Committed))
    assert (commit.begin, commit.end) == (0, len(voice(1)) * 2 + len(quiet(3)) + len(quiet(0.1)))


def test_silence_behind_the_last_word_is_cut_on_release():
    engine = FakeEngine()
    turns, events = start(engine, hold=True)
    with turns:
        turns.press()
        turns.push(np.concatenate([quiet(1), voice(1), quiet(1)]))
        turns.wait(10)
        turns.release()
        turns.wait(10, played=False)
    commit = next(event for event in events if isinstance(event, Committed))
    assert commit.end - commit.begin == 4800 + len(voice(1)) + 3200
    assert engine.prepared[-1][-1].media[0].sha256 == commit.message.media[0].sha256


def test_all_samples_up_to_the_release_count():
    turns, events = start(hold=True)
    with turns:
        turns.press()
        turns.push(np.concatenate([voice(1), np.full(300, 0.5, np.float32)]))
        turns.release()
    commit = next(event for event in events if isinstance(event, Committed))
    sound = commit.message.media[0].samples
    assert len(sound) == len(voice(1)) + FRAME and np.count_nonzero(sound) == len(voice(1)) + 300


def test_a_button_that_is_held_too_long_sends_once():
    turns, events = start(hold=True, options=ActivityOptions(longest_s=1.0))
    with turns:
        turns.press()
        turns.push(voice(5))
        turns.push(voice(5))
        turns.release()
        turns.wait(10, played=False)
    assert (
        kinds(events)[:3] == ["SpeechStarted", "SpeechStopped", "Committed"] and kinds(events).count("Committed") == 1
    )


def test_a_typed_message_takes_the_place_of_a_recording():
    turns, events = start(hold=True)
    with turns:
        turns.press()
        turns.push(voice(1))
        turns.say("Never mind")
        turns.release()
        turns.wait(10, played=False)
    assert kinds(events)[:3] == ["SpeechStarted", "Discarded", "Committed"]
    assert spoken(turns) == [("user", "Never mind")]


def test_press_needs_hold():
    turns, _ = start()
    with turns, pytest.raises(UsageError, match="hold=True"):
        turns.press()


# The end
# ----------------------------------------------------------------------------------------------------------------------


def test_close_ends_the_thread_in_every_state():
    before = threading.active_count()
    for pieces in (0, 2, None):
        engine = FakeEngine()
        if pieces is not None:
            engine.hold(pieces)
        turns, events = start(engine)
        ask(turns)
        if pieces is not None:
            assert engine.reached[pieces].wait(10)
            threading.Timer(0.05, engine.gates[pieces].set).start()
        turns.close()
        count = len(events)
        turns.push(voice(1))
        turns.say("x")
        turns.close()
        assert len(events) == count
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()
    assert threading.active_count() == before


STEPS = st.one_of(
    st.tuples(st.just("voice"), st.integers(1, 25)),
    st.tuples(st.just("quiet"), st.integers(1, 25)),
    st.tuples(st.just("played"), st.integers(0, 2500)),
    st.tuples(st.sampled_from(["say", "press", "release", "interrupt", "settle", "open"]), st.just(0)),
)


@settings(max_examples=80, deadline=None)
@given(st.booleans(), st.integers(0, 5), st.lists(STEPS, max_size=40))
def test_whatever_happens_a_conversation_stays_a_conversation(hold, gate, steps):
    engine = FakeEngine()
    engine.hold(gate)
    turns, events = start(engine, hold=hold)
    with turns:
        for step, number in steps:
            if step in ("voice", "quiet"):
                turns.push(np.full(number * FRAME, 0.5 if step == "voice" else 0.0, np.float32))
            elif step == "played":
                turns.played(turns._turn, number)
            elif step == "say":
                turns.say("typed")
            elif step == "interrupt":
                turns.interrupt()
            elif step in ("press", "release") and hold:
                getattr(turns, step)()
            elif step == "open":
                engine.gates.get(gate, threading.Event()).set()
            elif step == "settle" and (gate not in engine.gates or engine.gates[gate].is_set()):
                assert turns.wait(10, played=False)
        engine.gates[gate].set()
        assert turns.wait(10, played=False)
        turns.played(turns._turn, 10**9)
        assert turns.wait(10)
        assert turns.state is not State.ANSWERING
    numbers = [event.turn for event in events if isinstance(event, SpeechStarted | Committed)]
    assert numbers == sorted(numbers)
    for turn in set(numbers):
        mine = [event for event in events if event.turn == turn]
        names = "".join({"SpeechStarted": "(", "SpeechStopped": ")", "Committed": "c", "Text": "t", "Sound": "s"}.get(
            name, name[0]) for name in kinds(mine))  # fmt: skip
        assert re.fullmatch(r"(\(|D|\(D|\(\)|)(c[ts]*(I|DP|DI|F))?|\(\)c[ts]*(I|DP|DI|F)", names), names
        if names.endswith("I"):
            assert " ".join(WORDS).startswith(mine[-1].text)
    # An assistant's message follows a user's, and every message that was committed is there, in order.
    roles = [message.role for message in turns.messages]
    assert all(a == "user" for a, b in zip([None, *roles], roles) if b == "assistant")
    committed = [event.message for event in events if isinstance(event, Committed)]
    assert [message for message in turns.messages if message.role == "user"] == committed
