"""Draw `docs/images/run.svg`: the commands of `make run` with what they really print.

    python docs/images/make_terminal.py [--sensorium PATH] [--output FILE] [--note TEXT]

The commands are taken from the Makefile (`make -n run`) and run one after the other in a pseudo-terminal, so that
pictures are drawn as in a true-colour terminal; two pixels stand in each character cell. Their output is captured as
it is and written as SVG: text as text, pictures as one path per colour (a palette of 48), so that the file stays small
and needs neither fonts nor scripts. `--sensorium` names the program to run instead of the Makefile's `.venv`.
"""

from __future__ import annotations

import argparse
import os
import pty
import shlex
import subprocess
import sys
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[2]
COLUMNS = 96
CELL = (8.4, 17.0)  # width and height of a character, pixels
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
GROUND, INK, DIM, PROMPT = "#16181d", "#d7dae0", "#8b919c", "#7fd08a"
MARGIN, TITLE = 16, 34
COLOURS = 48


def commands() -> list[list[str]]:
    """The `sensorium` commands of `make run`, in their order."""
    dry = subprocess.run(["make", "-n", "-C", str(ROOT), "run"], capture_output=True, text=True, check=True).stdout
    lines = [shlex.split(line) for line in dry.splitlines() if "/sensorium ask" in line and "echo" not in line]
    if not lines:
        sys.exit("make -n run shows no `sensorium ask`; has the Makefile changed?")
    return lines


def captured(command: list[str]) -> str:
    """What a command prints in a true-colour terminal of `COLUMNS` columns. Ends the program when it fails."""
    master, slave = pty.openpty()
    size = {"COLORTERM": "truecolor", "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": "60"}
    process = subprocess.Popen(command, cwd=ROOT, stdin=slave, stdout=slave, env={**os.environ, **size})
    os.close(slave)
    data = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux reports the end of a pseudo-terminal as an input/output error
            break
        if not piece:
            break
        data += piece
    if process.wait():
        sys.exit(f"`{shlex.join(command)}` failed; nothing was written.")
    return data.decode().replace("\r\n", "\n").rstrip("\n")


def picture(lines: list[str]) -> np.ndarray:
    """Half blocks with two colours each -> uint8 pixels [2 * lines, columns, 3]."""
    rows = []
    for line in lines:
        text = Text.from_ansi(line)
        top, bottom = [], []
        for at in range(len(text.plain)):
            style = text.get_style_at_offset(_CONSOLE, at)
            assert style.color and style.color.triplet and style.bgcolor and style.bgcolor.triplet
            top.append(tuple(style.color.triplet))
            bottom.append(tuple(style.bgcolor.triplet))
        rows += [top, bottom]
    return np.array(rows, np.uint8)


def paths(pixels: np.ndarray) -> str:
    """Pixels as horizontal runs, one path per colour, in units of a pixel."""
    reduced = Image.fromarray(pixels).quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    index, palette = np.asarray(reduced), np.array(reduced.getpalette() or []).reshape(-1, 3)
    runs: dict[int, list[str]] = {}
    for y, row in enumerate(index):
        cuts = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
        for start, end in pairwise(cuts):
            runs.setdefault(int(row[start]), []).append(f"M{start} {y}h{end - start}v1h-{end - start}z")
    return "".join(f'<path fill="#{bytes(palette[i].tolist()).hex()}" d="{"".join(d)}"/>' for i, d in runs.items())


class Drawing:
    """Lines of a terminal, from top to bottom."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.y = float(TITLE + MARGIN)

    def line(self, *pieces: tuple[str, str]) -> None:
        """One line of (text, colour) pieces, wrapped at `COLUMNS`."""
        x = 0
        for text, colour in pieces:
            while text:
                if x >= COLUMNS:
                    x, self.y = 0, self.y + CELL[1]
                part, text = text[: COLUMNS - x], text[COLUMNS - x :]
                width = len(part) * CELL[0]
                self.parts.append(
                    f'<text x="{MARGIN + x * CELL[0]:.1f}" y="{self.y + 13:.1f}" fill="{colour}" '
                    f'textLength="{width:.1f}" xml:space="preserve">{escape(part, quote=False)}</text>'
                )
                x += len(part)
        self.y += CELL[1]

    def picture(self, pixels: np.ndarray) -> None:
        """A picture, two pixels to a line."""
        scale = f"translate({MARGIN} {self.y:.1f}) scale({CELL[0]} {CELL[1] / 2})"
        self.parts.append(f'<g transform="{scale}" shape-rendering="crispEdges">{paths(pixels)}</g>')
        self.y += len(pixels) / 2 * CELL[1]

    def output(self, text: str) -> None:
        """What a command printed."""
        lines = text.split("\n")
        while lines:
            count = next((i for i, line in enumerate(lines) if "▀" not in line), len(lines))
            if count:
                self.picture(picture(lines[:count]))
            else:
                count = 1
                self.line((Text.from_ansi(lines[0]).plain, INK))
            lines = lines[count:]

    def svg(self, title: str) -> str:
        """The finished drawing."""
        width, height = COLUMNS * CELL[0] + 2 * MARGIN, self.y + MARGIN
        dots = "".join(f'<circle cx="{MARGIN + 6 + 18 * i}" cy="{TITLE / 2}" r="5" fill="#3a3f4a"/>' for i in range(3))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'font-family="{FONT}" font-size="14"><title>{escape(title)}</title>'
            f'<rect width="100%" height="100%" rx="8" fill="{GROUND}"/>{dots}' + "".join(self.parts) + "</svg>\n"
        )


def main() -> None:
    """Run the commands and write the drawing."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sensorium", help="the program to run instead of the Makefile's")
    options.add_argument("--output", type=Path, default=Path(__file__).with_name("run.svg"))
    options.add_argument("--note", default="", help="a line to stand below the last answer")
    given = options.parse_args()
    drawing = Drawing()
    drawing.line(("$ ", PROMPT), ("make run", INK))
    for number, command in enumerate(commands()):
        program = [given.sensorium, *command[1:]] if given.sensorium else command
        text = captured(program)
        if number and "--show" in command:
            drawing.y += CELL[1] / 2
        shown = [word for word in command[1:] if word != "--show"]
        drawing.line(("> ", DIM), ("sensorium " + " ".join(f'"{w}"' if " " in w else w for w in shown), DIM))
        drawing.output(text)
    if given.note:
        drawing.line((given.note, DIM))
    given.output.write_text(drawing.svg("make run"), encoding="utf-8")
    sys.stdout.write(f"{given.output}: {given.output.stat().st_size / 1000:.0f} kB\n")


_CONSOLE = Console()

if __name__ == "__main__":
    main()
