"""Statements of the mini NLVR2. The oracle reads each sentence back from its words alone."""

import re
from collections import Counter
from functools import cache

import pytest

from vlbench.mini.scenes import COLORS, SHAPES, SIZES, Scene, scene
from vlbench.mini.statements import KINDS, Statement, state

NLVR2 = 6  # its stream
Pair = tuple[Scene, Scene]
PLURALS = {"crosses": "cross"} | {shape + "s": shape for shape in SHAPES if shape != "cross"}
NUMBERS = {"no": 0, "two": 2, "three": 3, "four": 4}


def count(words: str, picture: Scene) -> int:
    """Objects that a noun phrase fits."""
    wanted = {PLURALS.get(word, word) for word in words.split()} - {"object", "objects"}
    assert wanted <= {*SIZES, *COLORS, *SHAPES}, words
    return sum(wanted <= {thing.size, thing.color, thing.shape} for thing in picture.objects)


def read(sentence: str, pair: Pair) -> bool:
    """Whether a sentence is true of a pair."""
    sides = {"left": pair[0], "right": pair[1]}
    text = sentence.removesuffix(".")
    text = text[0].lower() + text[1:]
    if m := re.fullmatch(r"there is (a|no) (.+) in the (left|right) image", text):
        return (count(m[2], sides[m[3]]) > 0) == (m[1] == "a")
    if m := re.fullmatch(r"the (left|right) image (?:contains|shows) (a|no) (.+)", text):
        return (count(m[3], sides[m[1]]) > 0) == (m[2] == "a")
    if m := re.fullmatch(r"the (left|right) image contains exactly (\w+) (.+)", text):
        return count(m[3], sides[m[1]]) == NUMBERS[m[2]]
    if m := re.fullmatch(r"there are exactly (\w+) (.+) in the (left|right) image", text):
        return count(m[2], sides[m[3]]) == NUMBERS[m[1]]
    if m := re.fullmatch(r"there are more (.+) in the (left|right) image than in the (left|right) image", text):
        return count(m[1], sides[m[2]]) > count(m[1], sides[m[3]])
    if m := re.fullmatch(r"the (left|right) image contains more (.+) than the (left|right) image", text):
        return count(m[2], sides[m[1]]) > count(m[2], sides[m[3]])
    if m := re.fullmatch(r"both images contain the same number of (.+)", text):
        return count(m[1], pair[0]) == count(m[1], pair[1])
    if m := re.fullmatch(r"(?:the two images contain|there are) exactly (\w+) (.+) in total", text):
        return count(m[2], pair[0]) + count(m[2], pair[1]) == NUMBERS[m[1]]
    how_many = {
        r"both images contain a (.+)": {2},
        r"there is a (.+) in both images": {2},
        r"exactly one of the images contains a (.+)": {1},
        r"only one image shows a (.+)": {1},
        r"neither image contains a (.+)": {0},
        r"there is no (.+) in either image": {0},
        r"at least one of the images contains a (.+)": {1, 2},
        r"there is a (.+) in at least one image": {1, 2},
    }
    for pattern, wanted in how_many.items():
        if m := re.fullmatch(pattern, text):
            return sum(count(m[1], picture) > 0 for picture in pair) in wanted
    raise AssertionError(f"unreadable: {sentence}")


@cache
def stated(split: str, sets: int, sentences: int = 2) -> list[tuple[list[Pair], list[Statement]]]:
    found = []
    for number in range(sets):
        pictures = [scene(split, 8 * number + k, NLVR2) for k in range(8)]
        pairs = list(zip(pictures[::2], pictures[1::2], strict=True))
        found.append((pairs, state(pairs, split, number, sentences)))
    return found


def test_every_label_is_what_the_words_say() -> None:
    for pairs, statements in stated("train", 80, 12):
        for statement in statements:
            assert [read(statement.text, pair) for pair in pairs] == list(statement.truths), statement.text


def test_every_sentence_is_true_of_two_pairs_of_four() -> None:
    """So a judge that sees only the sentence, and has seen them all with their labels, is right half of the time."""
    for _, statements in stated("train", 80, 12):
        assert len({statement.text for statement in statements}) == 12
        assert all(len(statement.truths) == 4 and sum(statement.truths) == 2 for statement in statements)


def test_the_first_sentences_of_a_set_do_not_depend_on_how_many_follow() -> None:
    for (_, few), (_, many) in zip(stated("train", 20), stated("train", 80, 12), strict=False):
        assert few == many[:2]


def test_pictures_alone_do_not_give_the_label() -> None:
    """Best of the judges that know how many objects, or how many kinds, a pair has."""
    rows = [(pair, s.truths[k]) for pairs, told in stated("train", 250) for s in told for k, pair in enumerate(pairs)]
    for feature in (
        lambda pair: sum(len(picture.objects) for picture in pair),
        lambda pair: len({(thing.color, thing.shape) for picture in pair for thing in picture.objects}),
        lambda pair: len(pair[0].objects) - len(pair[1].objects),
    ):
        table = Counter((feature(pair), truth) for pair, truth in rows)
        right = sum(max(table[value, True], table[value, False]) for value in {value for value, _ in table})
        assert right / len(rows) < 0.56


def test_sentences_are_mostly_of_presence() -> None:
    texts = [statement.text for _, statements in stated("train", 250) for statement in statements]
    counting = [text for text in texts if re.search("exactly (two|three|four)|more|same number", text)]
    assert len(counting) / len(texts) == pytest.approx(0.23, abs=0.06)
    assert len({re.sub(r"\b(left|right)\b", "", text) for text in texts}) > 150
    assert sum(kind.weight for kind in KINDS) == 100
    assert all(" a object" not in text and text[0].isupper() and text.endswith(".") for text in texts)


def test_left_and_right_are_used_alike() -> None:
    texts = [statement.text for _, statements in stated("train", 250) for statement in statements]
    left = sum("left image" in text and "right image" not in text for text in texts)
    right = sum("right image" in text and "left image" not in text for text in texts)
    assert left / (left + right) == pytest.approx(0.5, abs=0.08)
