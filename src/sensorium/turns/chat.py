"""A conversation in the terminal: lines come in, typed or, after an empty line, spoken; answers are shown and said.

Three threads besides the caller's: the manager's, the player's, and the microphone's while it records. The terminal
stays in its usual mode throughout, so there is nothing to restore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.turns.engine import Engine
from sensorium.turns.events import Committed, Discarded, Done, Event, Failed, Interrupted, Sound, Text
from sensorium.turns.microphone import Microphone
from sensorium.turns.player import Player
from sensorium.turns.turn import Turns

LISTENING = "Listening; press Enter when you have finished."
NOTHING = "I heard nothing; press Enter and speak, or type."


class Chat:
    """One conversation; a context manager that leaves no thread and no program behind.

    Args:
        engine: the model.
        microphone: None to type only.
        write: takes pieces of answers, line ends included.
        hint, complain: tell the user a sentence: what to do, and what went wrong.
        player: whether answers are played.
        **options: as of `Turns`.

    Raises:
        SensoriumError: there is no program that plays.
    """

    def __init__(
        self,
        engine: Engine,
        microphone: Microphone | None,
        write: Callable[[str], None],
        hint: Callable[[str], None],
        complain: Callable[[str], None],
        *,
        player: bool = True,
        **options: Any,
    ) -> None:
        self._microphone, self._write, self._hint, self._complain = microphone, write, hint, complain
        self._recording = self._writing = self._muted = False
        self._broken: Exception | None = None
        self._player = Player(engine.rate, self._played, self._mute) if player else None
        self.turns = Turns(engine, self._on_event, hold=True, **options)

    def run(self, lines: Iterable[str], *, wait: bool) -> None:
        """Until the lines end: an empty line begins a recording, the next one ends it; any other is a message.

        Args:
            lines: what is typed.
            wait: let each answer end before the next line is read; else a line interrupts it.

        Raises:
            SensoriumError: and whatever else ended the conversation, such as standard output that nobody reads.
        """
        for line in lines:
            self._line(line.strip())
            if wait and not self._recording:
                self.turns.wait()
            self._check()
        if self._recording:
            self._line("")
        self.turns.wait()
        self._check()

    def _line(self, text: str) -> None:
        if self._recording:
            self._recording = False
            if self._microphone:
                self._microphone.stop()
            if not text:
                self.turns.release()
        elif not text:
            self._record()
        if text:
            self.turns.say(text)

    def _record(self) -> None:
        if not self._microphone:
            return
        self.turns.press()
        try:
            self._microphone.start(self.turns.push, self._deaf)
        except SensoriumError as error:
            self._deaf(error)
            return
        self._recording = True
        self._hint(LISTENING)

    def _deaf(self, error: SensoriumError) -> None:
        """The microphone has gone: what it has heard is answered, and the conversation goes on by text."""
        self._microphone, self._recording = None, False
        self._complain(str(error))
        self.turns.release()

    def _mute(self, error: SensoriumError) -> None:
        """Said once; the next answer is tried again, as headphones come and go."""
        if not self._muted:
            self._muted = True
            self._break_line()
            self._complain(str(error))

    def _played(self, turn: int, count: int) -> None:
        self.turns.played(turn, count)

    def _check(self) -> None:
        if self._broken:
            raise self._broken

    def _on_event(self, event: Event) -> None:
        """Called by the manager; nothing here waits."""
        player = self._player
        if isinstance(event, Committed) and player:
            player.begin(event.turn)
        elif isinstance(event, Text):
            self._writing = True
            self._write(event.piece)
        elif isinstance(event, Sound) and player:
            player.play(event.turn, event.samples)
        elif isinstance(event, Discarded):
            self._hint(NOTHING)
        elif isinstance(event, Done | Interrupted | Failed):
            if player:
                player.finish(event.turn) if isinstance(event, Done) else player.stop()
            elif isinstance(event, Done):  # nobody else will say that it was played
                self._played(event.turn, 1 << 62)
            if isinstance(event, Failed):
                self._fail(event.error)
            self._break_line()

    def _break_line(self) -> None:
        """Whatever is said next begins a line."""
        if self._writing:
            self._writing = False
            self._write("\n")

    def _fail(self, error: Exception) -> None:
        if isinstance(error, SensoriumError):
            self._break_line()
            self._complain(str(error))
        else:
            self._broken, self._writing = error, False

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        if self._player:
            self._player.stop()
        if self._microphone:
            self._microphone.stop()
        self.turns.close()
        if self._player:
            self._player.close()
