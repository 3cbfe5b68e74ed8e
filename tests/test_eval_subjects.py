"""What is read off a model many questions at a time is what is read off it one question at a time."""

from __future__ import annotations

import numpy as np
import pytest

import sensorium
import tiny
from sensorium.evaluation import subjects
from sensorium.evaluation.items import Question
from sensorium.evaluation.subjects import NO, YES, CascadeSubject, ModelSubject
from sensorium.messages import Message


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sensorium.load(tiny.write(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def pictures():
    return [np.random.default_rng(i).integers(0, 256, (24, 24, 3), np.uint8) for i in range(3)]


class Cascade(CascadeSubject):
    """The tiny encoder has no classes."""

    def labels(self, image):
        return "cat, dog" if image.pixels.mean() > 127 else "boat"


def questions(pictures):
    asked = []
    for picture in (*pictures, None):
        asked += [Question("yesno", picture, f"Is there a {word}?", (), word < "d") for word in ("cat", "dog", "ant")]
        asked.append(Question("caption", picture, "Describe this picture."))
        asked.append(Question("count", picture, "How many cats?"))
        asked.append(Question("choice", picture, "Left or right?", ("Left.", "Right.")))
    return asked


@pytest.mark.parametrize("kind", [ModelSubject, Cascade])
def test_together_is_as_alone(model, pictures, kind, monkeypatch):
    subject = kind(model)
    asked = questions(pictures)
    together = subject.examine(asked)
    monkeypatch.setattr(subjects, "BATCH", 1)
    for question, outcome in zip(asked, together):
        (alone,) = subject.examine([question])
        assert outcome.scores == alone.scores and outcome.margin == pytest.approx(alone.margin, abs=1e-5)
        if question.task != "yesno":  # there the others of a batch decide how far beyond yes or no the text goes
            assert outcome.text == alone.text
    assert len({o.margin for o in together}) > 6, "pictures and questions matter"


def test_margin_is_that_of_the_spellings(model, pictures):
    subject = ModelSubject(model)
    text = "Is there a cat?"
    written, weighed = subject.examine([Question("yesno", pictures[0], text, (), g) for g in (True, False)])
    prepared = model.prepare([Message("user", [sensorium.load_image(pictures[0]), text])])
    logprobs = np.asarray(prepared.engine.next_logprobs(prepared.segments), np.float64)
    tokenizer = model.parts.tokenizer.get()
    yes, no = ([logprobs[i] for i in {tokenizer.encode(word)[0] for word in words}] for words in (YES, NO))
    expected = np.log(np.exp(yes).sum()) - np.log(np.exp(no).sum())
    assert weighed.margin == pytest.approx(expected, abs=1e-6) and weighed.text == ""
    assert written.margin == pytest.approx(expected, abs=1e-5)


def test_margin_of_unlikely_spellings_is_read_off_all_tokens(model, pictures, monkeypatch):
    asked = [Question("yesno", pictures[0], "Is there a cat?")]
    (near,) = ModelSubject(model).examine(asked)
    monkeypatch.setattr(subjects, "_NEAR", 1)
    (far,) = ModelSubject(model).examine(asked)
    assert far.margin == pytest.approx(near.margin, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [("No", False), ("No.", True), ("Nothing is", False), ("Well, yes and", True), ("Well, yes", False), ("", False)],
)
def test_an_answer_ends_once_it_has_said_yes_or_no(text, said):
    assert subjects.decided(text) is said
