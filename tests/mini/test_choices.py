"""Questions with options. The oracle reads each question and its options back from their words."""

from __future__ import annotations

import re
from collections import Counter

from vlbench.mini.choices import Choice, choices
from vlbench.mini.scenes import COLORS, SHAPES, SIZES, Draws, Scene, Thing, scene

PLURALS = {"crosses": "cross"} | {shape + "s": shape for shape in SHAPES if shape != "cross"}


def fitting(words: str, picture: Scene) -> list[Thing]:
    """The objects that a noun phrase fits."""
    wanted = {PLURALS.get(word, word) for word in words.split()} - {"object", "objects"}
    assert wanted <= {*SIZES, *COLORS, *SHAPES}, words
    return [thing for thing in picture.objects if wanted <= {thing.size, thing.color, thing.shape}]


def is_right(choice: Choice, option: str, picture: Scene) -> bool:
    """Whether an option answers the question."""
    if found := re.fullmatch(r"How many (.+) are there\?", choice.question):
        things = fitting(found[1], picture)
        if choice.hint:
            size = choice.hint.removeprefix("Count ").removesuffix(" objects only.")
            things = [thing for thing in things if thing.size == size]
        return len(things) == int(option)
    if found := re.fullmatch(r"What (color|shape) is the (.+)\?", choice.question):
        (thing,) = fitting(found[2], picture)
        return option == (thing.color if found[1] == "color" else thing.shape)
    if found := re.fullmatch(r"Where is the (.+), seen from the (.+)\?", choice.question):
        ((first,), (second,)) = fitting(found[1], picture), fitting(found[2], picture)
        right, down = first.x - second.x, first.y - second.y
        across, along = abs(right) >= 2 * abs(down), abs(down) >= 2 * abs(right)  # where it is further away
        return {"left of": across and right < -7, "right of": across and right > 7, "above": along and down < -7,
                "below": along and down > 7}[option]  # fmt: skip
    assert choice.question == "Which of these is in the picture?"
    return bool(fitting(option, picture))


def test_one_option_is_right() -> None:
    abilities: Counter[str] = Counter()
    places: Counter[int] = Counter()
    for index in range(250):
        picture = scene("val", index, 14)
        asked = choices(picture, Draws(14, 1, index, 1), 3)
        assert len({choice.hint + choice.question for choice in asked}) == 3
        for choice in asked:
            right = [is_right(choice, option, picture) for option in choice.options]
            assert right.index(True) == choice.answer, choice
            assert sum(right) == 1, choice
            assert len(set(choice.options)) == 4
            abilities[choice.ability] += 1
            places[choice.answer] += 1
    assert set(abilities) == {"cp", "fp-s", "fp-c", "rr", "ar", "lr"}
    assert min(abilities.values()) > 20
    assert max(places.values()) < 1.25 * min(places.values())  # no letter is worth more


def test_a_hint_changes_the_answer() -> None:
    """Of some questions with a rule, the number without it is another."""
    changed = 0
    for index in range(400):
        picture = scene("train", index, 15)
        for choice in choices(picture, Draws(15, 0, index, 1), 2, least=2, most=5):
            assert 2 <= len(choice.options) <= 5
            if choice.hint:
                plain = Choice(choice.ability, "", choice.question, choice.options, choice.answer)
                changed += not is_right(plain, choice.options[choice.answer], picture)
    assert changed > 10
