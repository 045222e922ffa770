"""Questions with options about a scene, each of one of six abilities, in the manner of MMBench and ScienceQA.

The answer is drawn first, then wrong options that a hasty look would take: what else the scene shows comes before what
it does not. The place of the right option is uniform, so that no letter is worth more than another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .questions import COUNT_FORMS, MARGIN, RELATIONS, Description, View, phrase
from .scenes import COLORS, SHAPES, SIZES, Draws, Scene, Thing

OPTIONS = 4
MOST = 6  # objects that an option names
PHRASES = [(None, color, shape) for color in COLORS for shape in SHAPES]


@dataclass(frozen=True, slots=True)
class Choice:
    """ability: of MMBench's six, in its letters. answer: the place of the right option."""

    ability: str
    hint: str
    question: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class _Draft:
    """Before the options are drawn. wrong: all that could be one, the tempting ones first."""

    ability: str
    question: str
    truth: str
    wrong: Sequence[str]
    tempting: int = 0
    hint: str = ""


def choices(picture: Scene, draws: Draws, count: int, least: int = OPTIONS, most: int = OPTIONS) -> list[Choice]:
    """`count` different questions about a scene, of `least` to `most` options."""
    view = View(picture)
    asked: dict[str, Choice] = {}
    while len(asked) < count:  # ends: a scene has dozens of questions
        draft = draws.weighted(KINDS, WEIGHTS)(view, draws)
        if draft is not None and draft.hint + draft.question not in asked:
            asked[draft.hint + draft.question] = _drawn(draft, draws, draws.between(least, most))
    return list(asked.values())


def _drawn(draft: _Draft, draws: Draws, number: int) -> Choice:
    """The options of a draft, in their order. Two wrong ones in three are tempting, where there are so many."""
    near, far = list(draft.wrong[: draft.tempting]), list(draft.wrong[draft.tempting :])
    options: list[str] = []
    while len(options) < number - 1 and (near or far):
        pool = near if near and (not far or draws.chance(67)) else far
        options.append(pool.pop(draws.below(len(pool))))
    place = draws.below(len(options) + 1)
    options.insert(place, draft.truth)
    return Choice(draft.ability, draft.hint, draft.question, tuple(options), place)


def _number(view: View, draws: Draws) -> _Draft | None:
    truth = len(view.objects)
    return _Draft("cp", "How many objects are there?", str(truth), _other_numbers(truth), 2)


def _attribute(view: View, draws: Draws) -> _Draft | None:
    """A colour or a shape of the one object that some words fit."""
    thing = draws.pick(view.objects)
    hidden, what, values = draws.pick(((1, "color", COLORS), (2, "shape", SHAPES)))
    references = view.references(thing, hidden)
    if not references:
        return None
    truth = thing.color if what == "color" else thing.shape
    shown = {other.color if what == "color" else other.shape for other in view.objects}
    wrong, near = _near_first(truth, values, shown)
    return _Draft("fp-s", f"What {what} is the {phrase(draws.pick(references))}?", truth, wrong, near)


def _kinds(view: View, draws: Draws) -> _Draft | None:
    """How many objects fit a description."""
    form = draws.pick(COUNT_FORMS[:2])
    present = [description for description in form if view.counts[description]]
    counted = draws.pick(present if draws.chance(75) else form)
    truth = view.counts[counted]
    return _Draft("fp-c", f"How many {phrase(counted, plural=True)} are there?", str(truth), _other_numbers(truth), 2)


def _relation(view: View, draws: Draws) -> _Draft | None:
    """Where one object is, seen from another that stands in one direction alone."""
    first, second = draws.pick(view.objects), draws.pick(view.objects)
    fitting = _directions(first, second)
    subjects, landmarks = view.references(first), view.references(second)
    if len(fitting) != 1 or not subjects or not landmarks:
        return None
    text = f"Where is the {phrase(draws.pick(subjects))}, seen from the {phrase(draws.pick(landmarks))}?"
    truth = fitting[0]
    return _Draft("rr", text, truth, [relation for relation in RELATIONS if relation != truth])


def _directions(first: Thing, second: Thing) -> list[str]:
    """The one direction in which the first is further away, none where both are near or alike."""
    right, down = first.x - second.x, first.y - second.y
    if abs(right) >= max(MARGIN, 2 * abs(down)):
        return ["left of" if right < 0 else "right of"]
    if abs(down) >= max(MARGIN, 2 * abs(right)):
        return ["above" if down < 0 else "below"]
    return []


def _present(view: View, draws: Draws) -> _Draft | None:
    """Which of some kinds of object is there; the others have a colour or a shape of it."""
    present = [description for description in PHRASES if view.counts[description]]
    absent = [description for description in PHRASES if not view.counts[description]]
    near = [one for one in absent if view.counts[(None, one[1], None)] or view.counts[(None, None, one[2])]]
    far = [one for one in absent if one not in near]
    wrong = [phrase(one) for one in (*near, *far)]
    return _Draft("ar", "Which of these is in the picture?", phrase(draws.pick(present)), wrong, len(near))


def _rule(view: View, draws: Draws) -> _Draft | None:
    """The hint says which objects count: who does not read it answers another question."""
    size = draws.pick(SIZES)
    shapes = [shape for shape in SHAPES if view.counts[(None, None, shape)]]
    shape = draws.pick(shapes)
    counted: Description = (size, None, shape)
    truth, all_sizes = view.counts[counted], view.counts[(None, None, shape)]
    numbers = _other_numbers(truth)
    if all_sizes != truth:
        numbers.remove(str(all_sizes))
        numbers.insert(0, str(all_sizes))
    noun = phrase((None, None, shape), plural=True)
    return _Draft("lr", f"How many {noun} are there?", str(truth), numbers, 2, f"Count {size} objects only.")


def _other_numbers(truth: int) -> list[str]:
    """Numbers that are not the truth, the neighbours first."""
    return [str(n) for n in sorted((n for n in range(MOST) if n != truth), key=lambda n: (abs(n - truth), n))]


def _near_first(truth: str, values: Sequence[str], shown: set[str]) -> tuple[list[str], int]:
    """Wrong values, those that the scene shows first, and how many these are."""
    near = [value for value in values if value != truth and value in shown]
    return near + [value for value in values if value != truth and value not in shown], len(near)


KINDS: tuple[Callable[[View, Draws], _Draft | None], ...] = (
    _number, _attribute, _kinds, _relation, _present, _rule,
)  # fmt: skip
WEIGHTS = (8, 34, 14, 14, 20, 10)  # percent
