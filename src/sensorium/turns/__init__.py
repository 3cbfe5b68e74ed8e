"""Turns of a spoken conversation: when the user has spoken, when the model answers, and what of the answer was heard.

turns = Turns(ModelEngine(model), on_event)
turns.push(samples)          # from the microphone, as they come
turns.played(turn, count)    # from the player
turns.close()
"""

from __future__ import annotations

from sensorium.turns.activity import Activity, ActivityOptions, Silero
from sensorium.turns.engine import Engine, ModelEngine
from sensorium.turns.events import (
    Committed,
    Discarded,
    Done,
    Event,
    Failed,
    Interrupted,
    Played,
    Sound,
    SpeechStarted,
    SpeechStopped,
    Text,
)
from sensorium.turns.turn import State, Turns

__all__ = [
    "Activity",
    "ActivityOptions",
    "Committed",
    "Discarded",
    "Done",
    "Engine",
    "Event",
    "Failed",
    "Interrupted",
    "ModelEngine",
    "Played",
    "Silero",
    "Sound",
    "SpeechStarted",
    "SpeechStopped",
    "State",
    "Text",
    "Turns",
]
