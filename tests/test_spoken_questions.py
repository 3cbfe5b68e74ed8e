"""Spoken questions: three splits that share nothing, choices of which one is right, and what training leaves out."""

from __future__ import annotations

from itertools import combinations
from typing import get_args

import numpy as np
import pytest

from sensorium.training.data import spoken_questions as spoken
from sensorium.training.data.spoken_questions import Split, questions, read, repeats_a_test

SPLITS: tuple[Split, ...] = get_args(Split)


def bare(thing: str) -> str:
    return thing.lower().removeprefix("the ").removeprefix("a ").removeprefix("an ")


def everything(split: Split) -> list[spoken.SpokenQuestion]:
    return questions(split, None, all_families=True)


def test_no_question_stands_in_two_splits():
    texts = {split: {each.question.lower() for each in everything(split)} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not texts[one] & texts[other]
    assert not [text for text in texts["train"] if repeats_a_test(text)]


def test_what_fresh_questions_are_about_is_neither_asked_nor_answered_elsewhere():
    elsewhere = {bare(word) for family in read() for item in family.items for word in item}
    fresh = [bare(thing) for family in read(spoken.TEST_TABLE) for thing, _ in family.items]
    assert not set(fresh) & elsewhere
    assert len(set(fresh)) == len(fresh)
    assert not set(fresh) & {bare(thing) for thing in spoken.things()}


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_measuring_question_is_known_in_any_phrasing_and_inside_of_a_text(split):
    asked = everything(split)
    assert all(repeats_a_test(each.question) for each in asked)
    assert repeats_a_test(f"tell me: {asked[-1].question.lower().rstrip('?.')} and why")
    measured = {each.family for each in questions(split)}
    for family in read(spoken.TEST_TABLE if split == "test" else spoken.TABLE):
        thing = next(x for x, _ in family.items if split == "test" or spoken.held_out(x))
        if family.name in measured:
            assert all(repeats_a_test(phrasing.format(x=thing)) for phrasing in family.phrasings)


def test_fresh_questions_have_four_choices_of_which_one_is_right_and_none_is_told():
    for family in read(spoken.TEST_TABLE):
        answers = {answer for _, answer in family.items}
        assert len({answer.lower() for answer in answers}) == len(answers) > spoken.CHOICES, family.name
    for each in everything("test"):
        folded = [choice.lower() for choice in each.choices]
        assert len(set(folded)) == len(folded) == spoken.CHOICES, each
        assert each.choices.count(each.answer) == 1
        words = each.question.lower().rstrip("?.").split()
        assert not any(choice.lower().rstrip(".") in words for choice in each.choices), each
        assert 3 <= len(words) <= 12, each


def test_fresh_questions_are_enough_of_many_families():
    fresh, old = questions("test"), {family.name for family in read()}
    families = {each.family for each in fresh}
    assert len(fresh) >= 180
    assert len(families) >= 14
    assert len(families - old) >= 5
    assert len({each.question for each in fresh}) == len(fresh)
    every = {family.name for family in read(spoken.TEST_TABLE)}
    assert families == every - set(spoken.UNSURE_IN_TEST)
    assert set(spoken.UNSURE_IN_TEST) <= every


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_right_answer_is_no_likelier_to_stand_anywhere(split):
    places = [each.choices.index(each.answer) for each in questions(split) if len(each.choices) == spoken.CHOICES]
    shares = np.bincount(places, minlength=spoken.CHOICES) / len(places)
    assert (np.abs(shares - 1 / spoken.CHOICES) < 0.1).all()
