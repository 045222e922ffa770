"""Statements about two pictures in the manner of NLVR2: of four pairs, each is true of two and false of two.

As the humans of NLVR2 did, a writer looks at four pairs and finds words that tell two of them from the others. So
every sentence is balanced by itself, and who does not see the pictures is right half of the time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .questions import COUNT_FORMS, PRESENCE_FORMS, Description, View, phrase
from .scenes import SPLITS, STATEMENT, Draws, Scene

NUMBERS = ("no", "one", "two", "three", "four")
TRIES = 6  # forms of one kind that are looked through
OBJECTS: list[Description] = [(None, None, None)]
SETS_OF_COUNTS = (*COUNT_FORMS[:2], OBJECTS)


class Statement(NamedTuple):
    text: str
    truths: tuple[bool, ...]  # one a pair


@dataclass(frozen=True, slots=True)
class Kind:
    """What a statement claims of the numbers of things in the left and the right picture that a description fits."""

    weight: int  # percent of the statements
    holds: Callable[[int, int, int], bool]  # (left, right, the number that the text gives)
    texts: tuple[str, ...]
    forms: Sequence[Sequence[Description]] = PRESENCE_FORMS
    numbers: tuple[int, ...] = (0,)  # that the text can give


KINDS = (
    Kind(
        16,
        lambda left, right, _: left > 0,
        ("The left image contains a {one}.", "There is a {one} in the left image.", "The left image shows a {one}."),
    ),
    Kind(
        16,
        lambda left, right, _: right > 0,
        ("The right image contains a {one}.", "There is a {one} in the right image.", "The right image shows a {one}."),
    ),
    Kind(
        4,
        lambda left, right, _: left == 0,
        ("There is no {one} in the left image.", "The left image contains no {many}."),
    ),
    Kind(
        4,
        lambda left, right, _: right == 0,
        ("There is no {one} in the right image.", "The right image contains no {many}."),
    ),
    Kind(
        13,
        lambda left, right, _: left > 0 and right > 0,
        ("There is a {one} in both images.", "Both images contain a {one}."),
    ),
    Kind(
        10,
        lambda left, right, _: (left > 0) != (right > 0),
        ("Exactly one of the images contains a {one}.", "Only one image shows a {one}."),
    ),
    Kind(
        7,
        lambda left, right, _: left == right == 0,
        ("Neither image contains a {one}.", "There is no {one} in either image."),
    ),
    Kind(
        7,
        lambda left, right, _: left + right > 0,
        ("At least one of the images contains a {one}.", "There is a {one} in at least one image."),
    ),
    Kind(
        4,
        lambda left, right, number: left == number,
        ("The left image contains exactly {number} {many}.", "There are exactly {number} {many} in the left image."),
        COUNT_FORMS,
        (2, 3, 4),
    ),
    Kind(
        4,
        lambda left, right, number: right == number,
        ("The right image contains exactly {number} {many}.", "There are exactly {number} {many} in the right image."),
        COUNT_FORMS,
        (2, 3, 4),
    ),
    Kind(
        4,
        lambda left, right, number: left + right == number,
        ("The two images contain exactly {number} {many} in total.", "There are exactly {number} {many} in total."),
        COUNT_FORMS,
        (2, 3, 4),
    ),
    Kind(
        4,
        lambda left, right, _: left > right,
        (
            "There are more {many} in the left image than in the right image.",
            "The left image contains more {many} than the right image.",
        ),
        SETS_OF_COUNTS,
    ),
    Kind(
        4,
        lambda left, right, _: right > left,
        (
            "There are more {many} in the right image than in the left image.",
            "The right image contains more {many} than the left image.",
        ),
        SETS_OF_COUNTS,
    ),
    Kind(
        3,
        lambda left, right, _: left == right,
        ("Both images contain the same number of {many}.",),
        SETS_OF_COUNTS,
    ),
)
WEIGHTS = [kind.weight for kind in KINDS]


def state(pairs: Sequence[tuple[Scene, Scene]], split: str, index: int, count: int) -> list[Statement]:
    """`count` different statements about the pairs of set `index`."""
    draws = Draws(STATEMENT, SPLITS[split], index)
    views = [(View(left), View(right)) for left, right in pairs]
    by_text: dict[str, Statement] = {}
    while len(by_text) < count:  # ends: four pairs of chance differ in many ways
        kind = draws.weighted(KINDS, WEIGHTS)
        # A kind is kept while it finds nothing: giving it up at once would favour the kinds that always do.
        for _ in range(TRIES):
            fitting = _telling(kind, draws.pick(kind.forms), views)
            if fitting:
                description, number, truths = draws.pick(fitting)
                words = {"one": phrase(description), "many": phrase(description, plural=True)}
                text = draws.pick(kind.texts).format(number=NUMBERS[number], **words)
                by_text[text] = Statement(text, truths)
                break
    return list(by_text.values())


def _telling(
    kind: Kind, form: Sequence[Description], views: Sequence[tuple[View, View]]
) -> list[tuple[Description, int, tuple[bool, ...]]]:
    """The descriptions and numbers with which the kind is true of one half of the pairs."""
    statements = []
    for description in form:
        counts = [(left.counts[description], right.counts[description]) for left, right in views]
        for number in kind.numbers:
            truths = tuple(kind.holds(left, right, number) for left, right in counts)
            if 2 * sum(truths) == len(truths):
                statements.append((description, number, truths))
    return statements
