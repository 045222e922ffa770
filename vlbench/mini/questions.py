"""Questions about a scene, with ten human answers each, in the manner of VQAv2.

Balance comes from order: the answer is drawn first, then a question that has it. Names of colours and
shapes are interchangeable in the generator, so no string of words favours "yes" over "no", and a model
that ignores the image is left with the prior of the question's type.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from .scenes import COLORS, QUESTION, SHAPES, SIZES, SPLITS, Draws, Scene, Thing


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    truth: str
    answer_type: str  # "yes/no", "number" or "other"
    question_type: str  # the leading words, as VQAv2 has them


@dataclass(frozen=True, slots=True)
class HumanAnswer:
    answer: str
    confidence: str  # "yes" or "maybe"


Answers = tuple[HumanAnswer, ...]  # one an annotator
Description = tuple[str | None, str | None, str | None]  # size, colour, shape; None leaves it open
SIZE, COLOR, SHAPE = range(3)
MARGIN = 8  # pixels: nearer than this on an axis, neither object is said to be left of (above) the other
RELATIONS = ("left of", "right of", "above", "below")
ANNOTATORS = 10
DISSENT_PERCENT = 20
TRIES = 15  # of one kind of question; enough for most, while some scenes have no colour left to ask for
# A mistaken human names a neighbour: for numbers one more or fewer, for the rest what looks alike.
LOOKALIKES: dict[str, tuple[str, ...]] = {
    "yes": ("no",), "no": ("yes",),
    "0": ("1",), "1": ("2", "0"), "2": ("1", "3"), "3": ("2", "4"), "4": ("3", "5"), "5": ("4",),
    "red": ("purple",), "green": ("cyan",), "blue": ("purple", "cyan"), "yellow": ("white",),
    "cyan": ("blue", "green"), "purple": ("blue", "red"), "white": ("yellow",), "black": ("purple", "blue"),
    "circle": ("square",), "square": ("circle",), "triangle": ("star",), "star": ("cross", "triangle"),
    "cross": ("star",),
}  # fmt: skip
UNANIMOUS = {truth: (HumanAnswer(truth, "yes"),) * ANNOTATORS for truth in LOOKALIKES}


class View:
    """A scene as the questioner needs it: how many objects fit each description, and which do."""

    def __init__(self, scene: Scene) -> None:
        self.objects = scene.objects
        self.counts: defaultdict[Description, int] = defaultdict(int)
        for thing in self.objects:
            for description in _descriptions(thing):
                self.counts[description] += 1
        # Read several times a scene: what fits one object only, and for each form what has each count.
        self._unique = {
            thing: [description for description in _descriptions(thing) if self.counts[description] == 1]
            for thing in self.objects
        }
        self.by_count = [_group_by_count(form, self.counts) for form in COUNT_FORMS]

    def references(self, thing: Thing, hidden: int | None = None) -> list[Description]:
        """Descriptions that fit this object alone and do not mention its attribute `hidden`."""
        unique = self._unique[thing]
        if hidden is None:
            return unique
        return [description for description in unique if description[hidden] is None]


def _group_by_count(form: list[Description], counts: Mapping[Description, int]) -> dict[int, list[Description]]:
    groups: dict[int, list[Description]] = {}
    for description in form:
        groups.setdefault(counts[description], []).append(description)
    return groups


def _descriptions(thing: Thing) -> Iterator[Description]:
    return product((None, thing.size), (None, thing.color), (None, thing.shape))


def phrase(description: Description, plural: bool = False) -> str:
    size, color, shape = description
    noun = shape or "object"
    if plural:
        noun += "es" if noun.endswith("s") else "s"
    return " ".join(word for word in (size, color, noun) if word)


def _form(*attributes: int) -> list[Description]:
    """Every description that names exactly these attributes."""
    sizes, colors, shapes = (
        domain if axis in attributes else (None,) for axis, domain in enumerate((SIZES, COLORS, SHAPES))
    )
    return list(product(sizes, colors, shapes))


PRESENCE_FORMS = (_form(SHAPE), _form(COLOR), _form(COLOR, SHAPE), _form(SIZE, SHAPE), _form(SIZE, COLOR))
COUNT_FORMS = (_form(SHAPE), _form(COLOR), _form(SIZE), _form(COLOR, SHAPE))
COUNT_FORM_WEIGHTS = (6, 5, 2, 1)
# High counts are asked for whenever a scene offers them, since few do.
COUNT_WEIGHTS = (4, 4, 5, 9, 18, 45)


def _ask_presence(view: View, draws: Draws) -> Question | None:
    wanted = draws.chance(50)
    form = draws.pick(PRESENCE_FORMS)
    fitting = [description for description in form if (view.counts[description] > 0) == wanted]
    if not wanted:
        # Absent, but each of its words true of something: only the combination is wrong.
        tempting = [description for description in fitting if _words_present(view, description)]
        if tempting and draws.chance(60):
            fitting = tempting
    if not fitting:
        return None
    text = f"is there a {phrase(draws.pick(fitting))}?"
    return Question(text, _yes_no(wanted), "yes/no", "is there a")


def _words_present(view: View, description: Description) -> bool:
    size, color, shape = description
    return all(view.counts[alone] > 0 for alone in ((size, None, None), (None, color, None), (None, None, shape)))


def _ask_comparison(view: View, draws: Draws) -> Question | None:
    wanted = draws.chance(50)
    form = draws.pick((_form(SHAPE), _form(COLOR)))
    numbers = [(description, view.counts[description]) for description in form]
    pairs = [
        (first, second)
        for (first, more), (second, fewer) in product(numbers, numbers)
        if first != second and (more > fewer) == wanted and more + fewer > 0
    ]
    # Both kinds in the picture: the pairs that need counting.
    close = [pair for pair in pairs if view.counts[pair[0]] and view.counts[pair[1]]]
    pairs = close if close and draws.chance(60) else pairs
    if not pairs:
        return None
    first, second = draws.pick(pairs)
    text = f"are there more {phrase(first, plural=True)} than {phrase(second, plural=True)}?"
    return Question(text, _yes_no(wanted), "yes/no", "are there more")


def _ask_relation(view: View, draws: Draws) -> Question | None:
    wanted = draws.chance(50)
    first, second = draws.pick(view.objects), draws.pick(view.objects)
    relation = draws.pick(RELATIONS)
    distance = _distance(first, relation, second)
    if abs(distance) < MARGIN or (distance > 0) != wanted:
        return None
    subjects, landmarks = view.references(first), view.references(second)
    if not subjects or not landmarks:
        return None
    text = f"is the {phrase(draws.pick(subjects))} {relation} the {phrase(draws.pick(landmarks))}?"
    return Question(text, _yes_no(wanted), "yes/no", "is the")


def _distance(first: Thing, relation: str, second: Thing) -> int:
    """By how many pixels the relation holds; negative when its opposite does."""
    if relation == "left of":
        return second.x - first.x
    if relation == "right of":
        return first.x - second.x
    return second.y - first.y if relation == "above" else first.y - second.y


def _ask_count(view: View, draws: Draws) -> Question | None:
    offered = sorted(set().union(*view.by_count))
    number = draws.weighted(offered, [COUNT_WEIGHTS[count] for count in offered])
    weights = [weight * (number in groups) for weight, groups in zip(COUNT_FORM_WEIGHTS, view.by_count, strict=True)]
    counted = draws.pick(draws.weighted(view.by_count, weights)[number])
    text = f"how many {phrase(counted, plural=True)} are there?"
    return Question(text, str(number), "number", "how many")


def _ask_color(view: View, draws: Draws) -> Question | None:
    located = _locate(view, draws, COLOR)
    if located is None:
        return None
    thing, where = located
    return Question(f"what color is the {where}?", thing.color, "other", "what color is the")


def _ask_shape(view: View, draws: Draws) -> Question | None:
    located = _locate(view, draws, SHAPE)
    if located is None:
        return None
    thing, where = located
    return Question(f"what shape is the {where}?", thing.shape, "other", "what shape is the")


def _locate(view: View, draws: Draws, hidden: int) -> tuple[Thing, str] | None:
    """An object, and words that single it out without naming the attribute asked for."""
    if draws.chance(30):
        return _locate_by_landmark(view, draws, hidden)
    thing = draws.pick(view.objects)
    references = view.references(thing, hidden)
    return (thing, phrase(draws.pick(references))) if references else None


def _locate_by_landmark(view: View, draws: Draws, hidden: int) -> tuple[Thing, str] | None:
    """ "object left of the star", where the star is the only one and nothing else is to its left."""
    landmark = draws.pick(view.objects)
    # A unique landmark named by the attribute asked for would rule that value out as an answer.
    references = view.references(landmark, hidden)
    choices = [
        (beyond[0], relation)
        for relation in RELATIONS
        if len(beyond := _beyond(view, relation, landmark)) == 1 and _distance(beyond[0], relation, landmark) >= MARGIN
    ]
    if not references or not choices:
        return None
    thing, relation = draws.pick(choices)
    return thing, f"object {relation} the {phrase(draws.pick(references))}"


def _beyond(view: View, relation: str, landmark: Thing) -> list[Thing]:
    return [thing for thing in view.objects if _distance(thing, relation, landmark) > 0]


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


KINDS: tuple[Callable[[View, Draws], Question | None], ...] = (
    _ask_presence, _ask_comparison, _ask_relation, _ask_count, _ask_color, _ask_shape,
)  # fmt: skip
KIND_WEIGHTS = (16, 11, 15, 22, 22, 14)  # percent of the questions


def ask(scene: Scene, split: str, index: int, count: int) -> list[tuple[Question, Answers]]:
    """`count` different questions about a scene."""
    draws = Draws(QUESTION, SPLITS[split], index)
    view = View(scene)
    asked: dict[str, Question] = {}
    while len(asked) < count:  # ends: every scene has over a hundred questions of presence
        kind = draws.weighted(KINDS, KIND_WEIGHTS)
        # A kind is kept while its draw fails: giving it up at once would favour the kinds that never fail.
        for _ in range(TRIES):
            question = kind(view, draws)
            if question is not None and question.text not in asked:
                asked[question.text] = question
                break
    return [(question, _human_answers(question.truth, draws)) for question in asked.values()]


def _human_answers(truth: str, draws: Draws) -> Answers:
    """Ten answers of which at least six are right."""
    if not draws.chance(DISSENT_PERCENT):
        return UNANIMOUS[truth]
    answers = list(UNANIMOUS[truth])
    for _ in range(draws.weighted((1, 2, 3, 4), (6, 2, 1, 1))):
        # Two may fall on one place; that only lets a large dissent be a little rarer.
        wrong = draws.pick(LOOKALIKES[truth])
        answers[draws.below(ANNOTATORS)] = HumanAnswer(wrong, "maybe" if draws.chance(50) else "yes")
    hesitant = draws.below(ANNOTATORS)
    answers[hesitant] = HumanAnswer(answers[hesitant].answer, "maybe")
    return tuple(answers)
