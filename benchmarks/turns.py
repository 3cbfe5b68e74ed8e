"""What a turn costs at its end, and how well the words that were heard are known (docs/turns.md).

    python benchmarks/turns.py [--texts 20]

hibari reads short texts. Three questions:

- Encoded while the user speaks: what the speech encoder still has to do when a message of so many seconds ends, if
  nothing was done before (push to talk, released behind the last word), and beyond its window of 30 seconds; beside the
  other way, blocks that are encoded alone: how far their features are from those of the whole (cosine per frame,
  messages of about ten seconds).
- The voice detector: milliseconds for 32 ms of sound.
- What was heard: where `turns.said` holds each word to end, against the end that Whisper (tiny.en) hears. The units are
  the cascade's; a word takes about 0.3 s.

Times are medians of `ROUNDS` on one thread. The last line is JSON. Needs the extra `speech`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

import sensorium
from sensorium import encoders, hub
from sensorium.backbones.engine import Step
from sensorium.encoders.whisper import FRAME
from sensorium.encoders.whisper_parts import PARTS
from sensorium.generators.stream import speak_units
from sensorium.media import load_audio
from sensorium.speech import speaker_of
from sensorium.tasks.transcribe import Transcriber
from sensorium.turns import Silero
from sensorium.turns import activity as vad
from sensorium.turns.said import Said

ROUNDS = 5
SECONDS = (2, 5, 10, 20, 29, 45)
BLOCKS = ((100, 40), (200, 100), (300, 100))
"""Frames of a block, and of the overlap with the next."""

TEXTS = """\
The capital of France is Paris. It lies on the river Seine, and many people live there today.
A cat is a small animal with soft fur. Cats sleep a lot, often more than half of the day.
To make tea, boil some water, pour it over the leaves, and wait for three minutes before you drink it.
Yes, I can help you with that. First open the window, then take the red box from the table.
Music is the art of arranging sounds in time. It can make us happy or sad.
The sun is a star. It is very hot and very far away, so its light needs eight minutes to reach us.
There are seven days in a week, and the first of them is Monday. Some people begin with Sunday.
The apple lies on the left side of the plate. Beside it, I can see a spoon and a small cup of milk.
A good night's sleep helps you to learn. Try to go to bed at the same time every day.
Trees take in carbon dioxide and give us oxygen. That is why we should plant more of them.
The train leaves at nine in the morning and arrives before noon. You should be there early.
I do not know the answer to that question. Perhaps you can ask it in another way?
Bread is made from flour, water, salt and yeast. It has to rest before it goes into the oven.
Whales are not fish, although they live in the sea. They breathe air and feed their young with milk.
The picture shows a dog that runs over a green field. Behind the dog there is a white house.
Rain falls when the drops in a cloud become too heavy. Then they come down, one after the other.
Please write your name at the top of the page. Then read the first question and answer it.
The moon goes round the earth in about four weeks, and it always shows us the same side.
An adverb describes a verb, and an adjective describes a noun. Quickly is an adverb.
Cold water is heavier than warm water, so it sinks. Ice is lighter, and that is why it swims.
""".splitlines()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=len(TEXTS))
    given = parser.parse_args()
    model = sensorium.load("mini")
    generator = model.parts.generator.get()
    said = [speak_units(generator, generator.units_of(text)) for text in TEXTS]
    speech = [load_audio(sound, array_rate=generator.rate).samples for sound in said]
    whisper = encoders.create_audio("whisper-tiny.en", hub.fetch(PARTS["tiny.en"]), threads=1)
    result = {
        "encode_ms": encoding(whisper, np.concatenate(speech)),
        "blocks": blocks(whisper, [np.concatenate(pair) for pair in zip(speech[::2], speech[1::2])]),
        "detector_ms": detector(np.concatenate(speech)),
        "word_ends": word_ends(model, TEXTS[: given.texts]),
    }
    print("| seconds of speech | encoded at its end, ms |\n|---|---|")
    for seconds, took in result["encode_ms"].items():
        print(f"| {seconds} | {took} |")
    for block in result["blocks"]:
        print("Blocks of {seconds} s, {overlap_s} s shared: cosine {mean}, worst twentieth {low}.".format(**block))
    print(f"Detector: {result['detector_ms']} ms for 32 ms of sound.")
    print("Word ends, estimated less heard: median {median_s} s, 90 % in {range_s} s, {n} words.".format(
        **result["word_ends"]))  # fmt: skip
    print(json.dumps(result))


def timed(work: Callable[[], object]) -> float:
    """Milliseconds, the median of some rounds."""
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        took.append(1000 * (time.perf_counter() - began))
    return round(float(np.median(took)), 2)


def encoding(whisper: encoders.whisper.WhisperEncoder, speech: np.ndarray) -> dict[str, float]:
    """What is left at the end, by length: all of it up to 30 seconds, beyond that the last window."""
    found = {}
    for seconds in SECONDS:
        sound = speech[: seconds * 16_000]
        whisper.encode([sound])  # whole windows are remembered from here on, as they are while the user speaks
        found[str(seconds)] = timed(lambda: whisper.encode([sound]))  # noqa: B023 (called at once)
    return found


def blocks(whisper: encoders.whisper.WhisperEncoder, speech: list[np.ndarray]) -> list[dict[str, float]]:
    """Features of blocks against those of the whole message."""
    found = []
    for size, overlap in BLOCKS:
        cosines = []
        for sound in speech:
            whole = whisper.encode([sound])[0]
            made = np.zeros_like(whole)
            begin = first = 0
            while first < len(whole):
                end = min(begin + size, len(whole))
                last = len(whole) if end == len(whole) else end - overlap // 2
                block = whisper.encode([sound[begin * FRAME : end * FRAME]])[0]
                made[first:last] = block[first - begin : last - begin]
                begin, first = end - overlap, last
            cosines.append((made * whole).sum(1) / np.linalg.norm(made, axis=1) / np.linalg.norm(whole, axis=1))
        joined = np.concatenate(cosines)
        low, mean = round(float(np.quantile(joined, 0.05)), 2), round(float(joined.mean()), 2)
        found.append({"seconds": size / 50, "overlap_s": overlap / 50, "mean": mean, "low": low})
    return found


def detector(speech: np.ndarray) -> float:
    """Milliseconds for a frame."""
    frames = speech[: 500 * vad.FRAME].reshape(-1, vad.FRAME)
    detect = Silero().stream()
    return round(timed(lambda: [detect(frame) for frame in frames]) / len(frames), 3)


def word_ends(model: sensorium.Model, texts: list[str]) -> dict[str, object]:
    """Seconds that the estimated end of a word lies behind the one that Whisper hears, where it hears each word."""
    transcriber, tokenizer = Transcriber("tiny.en"), model.parts.tokenizer.get()
    space = model.parts.generator.get().space
    errors: list[float] = []
    for text in texts:
        made: list[np.ndarray] = []

        def sink(sound: np.ndarray, made: list[np.ndarray] = made) -> None:
            made.append(sound)
            said.sound(len(sound))  # noqa: B023 (called before the next text)

        speaker = speaker_of(model, sink, True)
        said, pieces = Said(speaker, space), tokenizer.stream()
        for step in speaker.follow(iter([Step(token, 0.0) for token in tokenizer.encode_answer(text)])):
            if piece := pieces.push(step.token):
                said.read(piece)
        speaker.finish()
        said.finish()
        heard = [
            word.end
            for segment in transcriber.segments([load_audio(np.concatenate(made), array_rate=24_000).samples])
            for word in segment.words
        ]
        ends = [sample / speaker.generator.rate for _, sample in said.ends()]
        if len(ends) == len(heard):
            errors += [ours - theirs for ours, theirs in zip(ends, heard)]
    low, median, high = (round(float(value), 2) for value in np.quantile(errors, [0.05, 0.5, 0.95]))
    return {"median_s": median, "range_s": [low, high], "n": len(errors)}


if __name__ == "__main__":
    main()
