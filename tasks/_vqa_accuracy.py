"""The VQA accuracy, digit for digit that of the official evaluator (GT-Vision-Lab/VQA, `vqaEval.py`).

Its oddities are part of the metric, as every published number has them; they are marked "quirk" below. One is
not taken over: the evaluator tells the humans apart by comparing whole records, so that without `answer_id`
equal answers drop each other (majority answers then score 21, not 97). Here a human is known by position,
which is the same wherever the ids are present, as in the official files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

ENOUGH = 3  # matching humans that make an answer fully right

# ':', "'", '&', '%', '$', '*' and '#' are not among them (quirk).
PUNCTUATION = frozenset('!"()+,-/;<=>?@[\\]_`{}')
COMMA_IN_NUMBER = re.compile(r"\d,\d")
# A period goes unless a digit follows: "3.5" and ".5" keep theirs, "5." and "u.s." lose it. The original's
# look-behind for a digit is misspelt and always true (quirk).
PERIOD = re.compile(r"\.(?!\d)")
LONE_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")  # the same, repaired: VLMEvalKit's
# The original passes re.UNICODE, which is 32, where re.sub expects the count (quirk).
PERIODS_REMOVED = int(re.UNICODE)

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip

# Ending -> the stems after which the original restores it ("dont" -> "don't"). The gaps are its own: "shed",
# "wed", "lets" and, as its table has them with a capital only, "im" and "ive" stay as they are (quirk).
ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who y'all you",
    "'ll": "how it somebody someone something they what who why y'all you",
    "'s": "he how somebody someone that there what when where who why",
    "'re": "there they what why you",
}
IRREGULAR = ("ma'am", "o'clock", "'twas", "y'all", "'ow's'at")


def _misspellings() -> dict[str, str]:
    """Contraction with one of its apostrophes missing -> the contraction."""
    whole = [stem + ending for ending, stems in ENDINGS.items() for stem in stems.split()]
    table = {
        word[:at] + word[at + 1 :]: word
        for word in (*whole, *IRREGULAR)
        for at, letter in enumerate(word)
        if letter == "'"
    }
    table["somebody'd"] = "somebodyd"  # the wrong way round in the original (quirk)
    return table


CONTRACTIONS = _misspellings()


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy in [0, 1] of one answer against those of n >= 2 humans (10 in VQAv2: 0, .3, .6, .9 or 1).

    The mean over the humans of min(1, matches among the others / 3).
    """
    said, truths = _one_line(prediction), [_one_line(answer) for answer in answers]
    # Where the humans agree to the letter nothing is normalised: ten times "yes" and "Yes" is 0 (quirk).
    if len(set(truths)) > 1:
        said, truths = normalise(said), [normalise(truth) for truth in truths]
    return _left_out(said, truths)


@lru_cache(maxsize=1 << 16)  # the ten answers repeat each other, and those of other questions
def normalise(text: str) -> str:
    """An answer as the evaluator compares it: lower case, digits, no punctuation, no articles."""
    return _plain_words(_without_punctuation(_one_line(text)))


@lru_cache(maxsize=1 << 16)
def normalise_tokens(text: str) -> str:
    """TextVQA's: mmf's EvalAIAnswerProcessor, which takes commas and question marks away and "'s" off its word first,
    in lower case, and then does what VQA's evaluator does (facebookresearch/mmf, m4c_evaluator.py in LLaVA @ c121f04;
    lmms-eval @ 75571cf)."""
    return normalise(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


@lru_cache(maxsize=1 << 16)
def normalise_repaired(text: str) -> str:
    """VLMEvalKit's (@ e8e78f0): VQA's with the period repaired, which goes only where no digit is on either side."""
    return _plain_words(without_punctuation(_one_line(text)))


def without_punctuation(text: str) -> str:
    """The text without marks and lone periods, as VLMEvalKit's process_punctuation gives it."""
    return LONE_PERIOD.sub("", marks_removed(text), count=PERIODS_REMOVED)


def soft_accuracy(prediction: str, answers: Sequence[str], rule: Callable[[str], str]) -> float:
    """TextVQA's accuracy in [0, 1]: as `accuracy`, with everything normalised by `rule` whatever the humans say."""
    return _left_out(rule(prediction), [rule(answer) for answer in answers])


def _left_out(said: str, truths: Sequence[str]) -> float:
    """The mean over the humans of min(1, matches among the others / 3)."""
    humans, matches = len(truths), truths.count(said)
    # Integers, so that three tenths is the float 0.3: those who match see one match fewer.
    thirds = matches * min(ENOUGH, matches - 1) + (humans - matches) * min(ENOUGH, matches)
    return thirds / (ENOUGH * humans)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    return PERIOD.sub("", marks_removed(text), count=PERIODS_REMOVED)


def marks_removed(text: str) -> str:
    """The text without PUNCTUATION, a blank in the place of marks that stand between other characters."""
    marks = PUNCTUATION.intersection(text)
    # Whether a mark vanishes or leaves a blank is settled once for the string, not where it stands (quirk):
    # one comma between digits and all marks vanish, one blank beside a mark and all of its kind do.
    vanish = COMMA_IN_NUMBER.search(text) is not None
    blanks = {ord(mark): "" if vanish or f"{mark} " in text or f" {mark}" in text else " " for mark in marks}
    return text.translate(blanks)


def _plain_words(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
