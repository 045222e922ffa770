"""Questions of the mini world. The oracle reads each question back from its words alone."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache

import pytest

from vlbench.mini.questions import LOOKALIKES, Answers, Question, ask
from vlbench.mini.scenes import COLORS, SHAPES, SIZES, Scene, Thing, scene

PLURALS = {"crosses": "cross"} | {shape + "s": shape for shape in SHAPES if shape != "cross"}
Asked = tuple[Question, Answers]


@cache
def asked(split: str, images: int, each: int) -> list[tuple[Scene, Asked]]:
    scenes = [scene(split, index) for index in range(images)]
    return [(picture, pair) for index, picture in enumerate(scenes) for pair in ask(picture, split, index, each)]


def matching(words: str, picture: Scene) -> list[Thing]:
    """Objects that a noun phrase fits, after its relative clause if it has one."""
    if clause := re.fullmatch(r"(.+?) (left of|right of|above|below) the (.+)", words):
        (landmark,) = matching(clause[3], picture)
        return [thing for thing in matching(clause[1], picture) if holds(thing, clause[2], landmark)]
    found = list(picture.objects)
    for word in words.split():
        word = PLURALS.get(word, word)
        assert word in {*SIZES, *COLORS, *SHAPES, "object", "objects"}
        if not word.startswith("object"):
            found = [thing for thing in found if word in (thing.size, thing.color, thing.shape)]
    return found


def holds(first: Thing, relation: str, second: Thing) -> bool:
    before = {
        "left of": first.x < second.x,
        "right of": first.x > second.x,
        "above": first.y < second.y,
        "below": first.y > second.y,
    }
    return before[relation]


def yes_no(value: bool) -> str:
    return "yes" if value else "no"


def only(things: list[Thing]) -> Thing:
    (thing,) = things
    return thing


READERS: list[tuple[str, Callable[[re.Match[str], Scene], str]]] = [
    (r"is there a (.+)\?", lambda m, s: yes_no(bool(matching(m[1], s)))),
    (r"how many (.+) are there\?", lambda m, s: str(len(matching(m[1], s)))),
    (
        r"are there more (.+) than (.+)\?",
        lambda m, s: yes_no(len(matching(m[1], s)) > len(matching(m[2], s))),
    ),
    (r"what color is the (.+)\?", lambda m, s: only(matching(m[1], s)).color),
    (r"what shape is the (.+)\?", lambda m, s: only(matching(m[1], s)).shape),
    (
        r"is the (.+) (left of|right of|above|below) the (.+)\?",
        lambda m, s: yes_no(holds(only(matching(m[1], s)), m[2], only(matching(m[3], s)))),
    ),
]


def read(question: str, picture: Scene) -> str:
    for pattern, answer in READERS:
        if match := re.fullmatch(pattern, question):
            return answer(match, picture)
    raise AssertionError(f"unreadable: {question}")


def test_every_truth_is_true() -> None:
    for picture, (question, _) in asked("train", 250, 12):
        assert read(question.text, picture) == question.truth, question.text


def test_questions_of_an_image_differ_and_are_as_many_as_asked() -> None:
    for index in range(100):
        texts = [question.text for question, _ in ask(scene("val", index), "val", index, 12)]
        assert len(set(texts)) == len(texts) == 12


def test_types_follow_the_official_files() -> None:
    kinds = {"yes/no": {"yes", "no"}, "number": set("012345"), "other": {*COLORS, *SHAPES}}
    for _, (question, _) in asked("train", 250, 12):
        assert question.truth in kinds[question.answer_type]
        assert question.text.startswith(question.question_type + " ")


def test_vocabulary_is_small_and_answers_are_single_words() -> None:
    words: set[str] = set()
    for _, (question, humans) in asked("train", 250, 12):
        words.update(re.findall(r"[a-z0-9]+", question.text))
        assert question.text == question.text.lower()
        assert all(" " not in human.answer for human in humans)
        words.update(human.answer for human in humans)
    assert len(words) <= 70


def test_some_humans_disagree_and_never_outvote_the_truth() -> None:
    pairs = [pair for _, pair in asked("train", 250, 12)]
    dissents = []
    for question, humans in pairs:
        wrong = [human.answer for human in humans if human.answer != question.truth]
        assert len(humans) == 10
        assert set(wrong) <= set(LOOKALIKES[question.truth])
        dissents.append(len(wrong))
        if not wrong:
            assert {human.confidence for human in humans} == {"yes"}
    assert set(dissents) == {0, 1, 2, 3, 4}
    assert sum(dissent > 0 for dissent in dissents) / len(dissents) == pytest.approx(0.2, abs=0.03)


def test_answers_are_balanced() -> None:
    shares: dict[str, Counter[str]] = defaultdict(Counter)
    for _, (question, _) in asked("val", 2000, 2):
        shares[question.question_type][question.truth] += 1
    for kind in ("is there a", "are there more", "is the"):
        assert shares[kind]["yes"] / shares[kind].total() == pytest.approx(0.5, abs=0.03)
    assert max(shares["how many"].values()) / shares["how many"].total() < 0.25
    assert min(shares["how many"].values()) / shares["how many"].total() > 0.10
    assert max(shares["what color is the"].values()) / shares["what color is the"].total() < 0.16
    assert max(shares["what shape is the"].values()) / shares["what shape is the"].total() < 0.25


def vqa_accuracy(answer: str, humans: Answers) -> float:
    """The official measure: mean over annotators left out of min(1, agreeing others / 3)."""
    same = sum(human.answer == answer for human in humans)
    return sum(min(1.0, (same - (human.answer == answer)) / 3) for human in humans) / len(humans)


def test_truth_scores_full_and_the_blind_score_low() -> None:
    """Blind: the best answer for each question string (or, unseen, for its type) in a part of train."""
    credit: dict[str, Counter[str]] = defaultdict(Counter)
    for _, (question, _humans) in asked("train", 1000, 12):
        for key in (question.text, question.question_type):
            credit[key][question.truth] += 1
    report = [pair for _, pair in asked("val", 2000, 2)]
    assert all(vqa_accuracy(question.truth, humans) == pytest.approx(1.0) for question, humans in report)
    blind = 0.0
    for question, humans in report:
        seen = credit.get(question.text) or credit[question.question_type]
        blind += vqa_accuracy(seen.most_common(1)[0][0], humans)
    assert 0.30 < blind / len(report) < 0.42
