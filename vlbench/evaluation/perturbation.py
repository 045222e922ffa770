"""perturb=NAME:STRENGTH[+NAME:STRENGTH]: what is evaluated with other texts or other images than those of the data.

Only what the model is given changes: answers are scored against the samples as they are, and methods learn from clean
data. The random numbers of a text follow from (seed, name, sample id), those of an image from (seed, name, its pixels),
so that questions about one image share one corrupted image, which is encoded once, wherever its file lies. The strength
has no part in them: a stronger one changes the same words, and more of them, or adds the same noise, and more of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError, did_you_mean
from ..images.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from ..task import Sample

MASK = "[MASK]"  # BERT's own mask token; to a language model of other tokens it is a word that says nothing
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # of a keyboard: a wrong key is one beside the right one
Words = list[str]


def _order(words: Words, random: np.random.Generator) -> list[int]:
    """The places of the words in random order, but of those that stand for something else (<image>)."""
    order = [int(place) for place in random.permutation(len(words))]
    return [place for place in order if not (words[place].startswith("<") and words[place].endswith(">"))]


def _instead(word: str, words: Words, rate: float, random: np.random.Generator) -> Words:
    """`word` in the place of round(rate x words) words. At least one word stays as it is."""
    order = _order(words, random)
    chosen = set(order[: max(min(round(rate * len(order)), len(order) - 1), 0)])
    return [word if place in chosen else kept for place, kept in enumerate(words)]


def mask(words: Words, rate: float, random: np.random.Generator) -> Words:
    return _instead(MASK, words, rate, random)


def drop(words: Words, rate: float, random: np.random.Generator) -> Words:
    return _instead("", words, rate, random)


def typos(words: Words, rate: float, random: np.random.Generator) -> Words:
    """One slip in each of the chosen words. All of a text may be chosen: a word with a slip is a word still."""
    order = _order(words, random)
    slips = random.random((len(words), 3))  # of every word, chosen or not: the same slip at every rate
    mistyped = list(words)
    for place in order[: round(rate * len(order))]:
        mistyped[place] = _mistyped(words[place], slips[place])
    return mistyped


def _mistyped(word: str, slip: NDArray[np.float64]) -> str:
    """Two letters swapped, one left out, one typed twice, or the key beside it; slip: three numbers in [0, 1)."""
    letters = [place for place, letter in enumerate(word) if letter.isalpha()]
    if len(letters) < 2:
        return word
    place = letters[int(slip[0] * len(letters))]
    letter, kind = word[place], int(slip[1] * 4)
    if kind == 0:
        first = min(place, len(word) - 2)
        return word[:first] + word[first + 1] + word[first] + word[first + 2 :]
    if kind == 3:
        row = next((row for row in ROWS if letter.lower() in row), "")
        beside = [row[p] for p in (row.find(letter.lower()) - 1, row.find(letter.lower()) + 1) if 0 <= p < len(row)]
        return word[:place] + (beside[int(slip[2] * len(beside))] if beside else letter) + word[place + 1 :]
    return word[:place] + letter * (0 if kind == 1 else 2) + word[place + 1 :]


TEXTS: dict[str, Callable[[Words, float, np.random.Generator], Words]] = {"drop": drop, "mask": mask, "typos": typos}


@dataclass(frozen=True)
class Perturbation:
    """What `perturb=` says. texts: (name, rate) of those that change texts; images: (name, severity)."""

    texts: tuple[tuple[str, float], ...]
    images: tuple[tuple[str, int], ...]
    seed: int = 0

    def __str__(self) -> str:
        """One way to say it, which identities have: names in alphabetical order, texts first."""
        return "+".join(f"{name}:{strength:g}" for name, strength in (*self.texts, *self.images))

    def text(self, text: str, owner: str) -> str:
        """owner: the id of the sample, and which of its texts it is."""
        pieces = re.findall(r"(\s*)(\S+)", text)  # each word, after the space or the lines before it
        spaces, words = [space for space, _ in pieces], [word for _, word in pieces]
        for name, rate in self.texts:
            words = TEXTS[name](words, rate, _random(self.seed, name, owner.encode()))
        return "".join(space + word for space, word in zip(spaces, words, strict=True) if word).lstrip()

    def samples(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples as the model reads them."""
        if not self.texts:
            return list(samples)
        return [
            replace(
                sample,
                text=self.text(sample.text, sample.id),
                texts=tuple(self.text(text, f"{sample.id}/{place}") for place, text in enumerate(sample.texts)),
            )
            for sample in samples
        ]

    def image(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> the same shape, as the model's preprocessing takes it."""
        for name, severity in self.images:
            random = _random(self.seed, name, str(tuple(image.shape)).encode() + image.numpy().tobytes())
            image = corrupted(image, name, severity, random)
        return image

    def check(self, samples: Sequence[Sample], task: str) -> None:
        """Raise UserError where nothing that it would change is there."""
        if self.texts and not any(sample.text or sample.texts for sample in samples):
            raise UserError(
                f"perturb={self}: the samples of task={task} have no text that the model reads; perturb its images, "
                f"with one of {', '.join(CORRUPTIONS)}."
            )


def parse(text: str, seed: int = 0) -> Perturbation:
    """Raises UserError that says what is wrong of perturb=TEXT."""
    strengths: dict[str, float] = {}
    for part in text.split("+"):
        name, _, strength = part.partition(":")
        if name not in TEXTS and name not in CORRUPTIONS:
            raise UserError(f"perturb={text}: {name!r} is not known. {did_you_mean(name, (*TEXTS, *CORRUPTIONS))}")
        if name in strengths:
            raise UserError(f"perturb={text} has {name} twice: say its strength once.")
        number = float(strength) if re.fullmatch(r"\d+(\.\d+)?", strength) else 0.0
        if name in TEXTS and not 0 < number <= 1:
            raise UserError(
                f"perturb={text}: {name} takes the rate of the words that it changes, above 0 and at most 1, "
                f"like {name}:0.1."
            )
        if name in CORRUPTIONS and number not in range(1, SEVERITIES + 1):
            raise UserError(f"perturb={text}: {name} takes a severity, 1 to {SEVERITIES}, like {name}:3.")
        strengths[name] = number
    return Perturbation(
        tuple((name, rate) for name, rate in sorted(strengths.items()) if name in TEXTS),
        tuple((name, int(severity)) for name, severity in sorted(strengths.items()) if name in CORRUPTIONS),
        seed,
    )


def perturbation_of(settings: Mapping[str, Any]) -> Perturbation:
    """Of a cell's evaluation settings; one that changes nothing where they have none."""
    text = settings.get("perturb")
    return parse(str(text), int(settings["perturb_seed"])) if text else Perturbation((), ())


def _random(seed: int, name: str, owner: bytes) -> np.random.Generator:
    key = hashlib.sha256(f"{seed} {name} ".encode() + owner).digest()
    return np.random.default_rng(int.from_bytes(key[:16], "big"))
