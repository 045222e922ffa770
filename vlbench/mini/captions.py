"""Captions of a scene in the manner of COCO: five humans, who choose for themselves what to mention and how.

Every caption is true, and tells its picture from others: a human mentions objects until the words fit no other scene
of a gallery, the first scenes of the split.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from .questions import MARGIN, Description, View, phrase
from .scenes import CAPTION, SPLITS, Draws, Scene, Thing, scene

GALLERY = 1500  # scenes: all of val and test
LENGTHS = range(6, 17)  # words
TRIES = 8
NUMBERS = ("no", "a", "two", "three", "four", "five")
SALIENCE = {"large": 3, "small": 1}  # large objects are mentioned more often, and earlier
OPENERS = ("", "there {is} ", "this picture shows ", "the image shows ")
OPENER_WEIGHTS = (6, 3, 1, 1)
# Captions that give the number of objects, by what they mention: some of the objects, or the whole scene.
PARTIAL = ("{objects} including {}", "{objects} with {}")
WHOLE = ("{objects}, {}", "only {objects}, {}", "only {}", "just {}", "{} and nothing else")
SPOKEN = {
    "left of": ("left of", "to the left of"), "right of": ("right of", "to the right of"),
    "above": ("above",), "below": ("below",),
}  # fmt: skip
# Where a place has its centres: columns and rows.
LOW, MIDDLE, HIGH, ANYWHERE = range(21), range(21, 44), range(44, 64), range(64)
PLACES = {
    "on the left": (LOW, ANYWHERE), "on the right": (HIGH, ANYWHERE),
    "at the top": (ANYWHERE, LOW), "at the bottom": (ANYWHERE, HIGH), "in the middle": (MIDDLE, MIDDLE),
}  # fmt: skip

Gallery = dict[int | tuple[Description, int], int]


@dataclass(frozen=True, slots=True)
class Mention:
    """A noun phrase for all the objects of the scene that it fits."""

    text: str
    verb: str
    members: frozenset[int]  # positions of the objects among those of the scene
    things: tuple[Thing, ...]
    places: tuple[str, ...]  # where all of them stand
    others: int  # a bit for each scene of the gallery in which it would also be true
    weight: int


def describe(picture: Scene, stream: int, split: str, index: int, count: int, taken: set[str]) -> list[str]:
    """`count` captions of a scene that are not among those `taken`, which they join."""
    draws = Draws(CAPTION, stream, SPLITS[split], index)
    human = _Human(picture, draws, gallery(stream, split), ~(1 << index))
    sentences: list[str] = []
    while len(sentences) < count:  # ends: there are far more ways to say it than pictures that look alike
        text = human.words(taken)
        if text is not None:
            taken.add(" ".join(tokens(text)))
            sentences.append(_typed(text, draws))
    return sentences


def tokens(caption: str) -> list[str]:
    """Words in lower case without punctuation, as Karpathy's files have them."""
    return caption.lower().replace(",", "").replace(".", "").split()


def _typed(text: str, draws: Draws) -> str:
    """Some humans forget the capital, some the full stop."""
    first = text[0] if draws.chance(10) else text[0].upper()
    return first + text[1:] + ("" if draws.chance(15) else ".")


class _Human:
    """Finds words for a scene."""

    def __init__(self, picture: Scene, draws: Draws, known: Gallery, others: int) -> None:
        self.objects = picture.objects
        self.others = others
        self.alike = others & known[len(picture.objects)]
        self.number = f"{NUMBERS[len(picture.objects)]} objects"
        self.draws = draws
        self.salience = [SALIENCE[thing.size] for thing in picture.objects]
        self.mentions = [list(_mentions(thing, picture.objects, known)) for thing in picture.objects]

    def words(self, taken: set[str]) -> str | None:
        """The first of some tries that fits nothing in the gallery, or what fits the fewest scenes."""
        best, fewest = None, GALLERY
        for _ in range(TRIES):
            text, others = self._caption()
            words = tokens(text)
            if others < fewest and len(words) in LENGTHS and " ".join(words) not in taken:
                best, fewest = text, others
                if not others:
                    break
        return best

    def _caption(self) -> tuple[str, int]:
        """A caption, and how many scenes of the gallery it fits if things may stand elsewhere in them."""
        mentions, others, whole = self._choose()
        alike = others & self.alike
        # The number of objects is given where it helps, and now and then for its own sake.
        counted = self.draws.chance(90 if 2 * alike.bit_count() < others.bit_count() else 20)
        frame = self.draws.pick(WHOLE if whole else PARTIAL) if counted else "{}"
        others = alike if counted else others
        opener = self.draws.weighted(OPENERS, OPENER_WEIGHTS)
        verb = "are" if "{objects}" in frame else mentions[0].verb
        body = self._body(mentions, sentence=not opener and not counted, need=others != 0)
        text = opener.format_map({"is": verb}) + frame.format(body, objects=self.number)
        return text, others.bit_count()

    def _choose(self) -> tuple[list[Mention], int, bool]:
        """Phrases for different objects, the scenes of the gallery that they fit, and whether no object is left."""
        mentions: list[Mention] = []
        others = self.others
        left = set(range(len(self.objects)))
        while left and (len(mentions) < 2 or others) and len(mentions) < 4:
            places = sorted(left)
            place = self.draws.weighted(places, [self.salience[place] for place in places])
            fresh = [mention for mention in self.mentions[place] if mention.members <= left]
            if not fresh:
                break
            mention = self.draws.weighted(fresh, [mention.weight for mention in fresh])
            mentions.append(mention)
            others &= mention.others
            left -= mention.members
        return mentions, others, not left

    def _body(self, mentions: Sequence[Mention], sentence: bool, need: bool) -> str:
        """The mentions in words. need: to say where things stand, as there are pictures with such objects."""
        related = len(mentions) > 1 and self.draws.chance(90 if need else 60)
        relation = self._relation(*mentions[:2]) if related else None
        if relation is None:
            return self._joined(mentions, need)
        first, second, *rest = mentions
        verb = f"{first.verb} " if sentence and self.draws.chance(60) else ""
        text = f"{first.text} {verb}{relation} "
        if len(rest) == 1 and self.draws.chance(60) and (other := self._relation(first, rest[0])):
            return f"{text}{second.text} and {other} {rest[0].text}"
        text += self._joined([second], need)
        return f"{text}, with {self._joined(rest, need)}" if rest else text

    def _joined(self, mentions: Sequence[Mention], need: bool) -> str:
        """A star, two circles at the top and a cross."""
        phrases = []
        for mention in mentions:
            placed = mention.places and self.draws.chance(40 if need else 15)
            phrases.append(f"{mention.text} {self.draws.pick(mention.places)}" if placed else mention.text)
        return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))

    def _relation(self, first: Mention, second: Mention) -> str | None:
        """Where all the first stand as seen from all the second, along the axis on which they are further apart."""
        fitting = set(SPOKEN)
        for one in first.things:
            for other in second.things:
                fitting &= set(_seen(one, other))
        if not fitting:
            return None
        return self.draws.pick(SPOKEN[self.draws.pick(sorted(fitting))])


def _seen(one: Thing, other: Thing) -> Iterator[str]:
    """Where the one is, seen from the other: along the axis on which they are further apart, or both axes."""
    right, down = one.x - other.x, one.y - other.y
    if abs(right) >= max(MARGIN, abs(down)):
        yield "left of" if right < 0 else "right of"
    if abs(down) >= max(MARGIN, abs(right)):
        yield "above" if down < 0 else "below"


def _mentions(thing: Thing, objects: Sequence[Thing], known: Gallery) -> Iterator[Mention]:
    """Phrases that fit this object, by how much it names."""
    forms: tuple[tuple[int, Description], ...] = (
        (10, (thing.size, thing.color, thing.shape)),
        (5, (None, thing.color, thing.shape)),
        (1, (thing.size, None, thing.shape)),
        (1, (thing.size, thing.color, None)),
    )
    for weight, description in forms:
        members = frozenset(place for place, other in enumerate(objects) if _fits(description, other))
        things = tuple(objects[place] for place in sorted(members))
        number, verb = len(things), "is" if len(things) == 1 else "are"
        text = f"{NUMBERS[number]} {phrase(description, plural=number > 1)}"
        places = tuple(place for place, where in PLACES.items() if _all_stand(things, *where))
        yield Mention(text, verb, members, things, places, known[description, number], weight)


def _fits(description: Description, thing: Thing) -> bool:
    size, color, shape = description
    return size in (None, thing.size) and color in (None, thing.color) and shape in (None, thing.shape)


def _all_stand(things: Sequence[Thing], columns: range, rows: range) -> bool:
    return all(thing.x in columns and thing.y in rows for thing in things)


@cache
def gallery(stream: int, split: str) -> Gallery:
    """A bit for each scene with so many objects, and with so many that a description fits ("a" star: one or more)."""
    gallery: Gallery = defaultdict(int)
    for index in range(GALLERY):
        bit = 1 << index
        picture = scene(split, index, stream)
        gallery[len(picture.objects)] |= bit
        for description, count in View(picture).counts.items():
            gallery[description, 1] |= bit
            if count > 1:
                gallery[description, count] |= bit
    return gallery
