"""MMMU's rules for written answers (MMMU-Benchmark/MMMU @ bb0b95a, eval_utils.py): choices, and open questions.

Where no letter is found the original draws one by random.choice, seeded once, so that what it draws depends on all
questions before. Here that is "", and the task counts it as wrong or as one in n.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ._choice import Options

ENDS = (",", ".", "!", "?", ";", ":", "'")  # stripped one after another, in this order
WORDS_OF_A_TEXT = 5  # an answer of more words is searched for the options' texts
KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
TRIVIAL = frozenset({":", ",", ".", "!", "?", ";", "'"})
# Sentences are divided at a period before a capital, of which lower-cased text has none (quirk), and at line breaks.
SENTENCES = re.compile(r"\.\s(?=[A-Z])|\n")
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)

Value = float | str


def official(text: str, options: Options) -> str:
    """The last letter in parentheses; else the last that stands alone; else, of more than five words, the option whose
    text comes last."""
    return _chosen(text, options, ("({})",), (" {} ",))


def lmms(text: str, options: Options) -> str:
    """lmms-eval's rule (@ 75571cf): a letter needs no blank before it ("NASA is" is A), then a letter with a period.
    Of several letters it takes the last that does have blanks on both sides, or the first where none has."""
    return _chosen(text, options, ("({})",), ("{} ",), ("{}.",))


def _chosen(text: str, options: Options, *stages: tuple[str]) -> str:
    said = text
    for mark in ENDS:
        said = said.strip(mark)
    said = f" {said} "
    for number, (shape,) in enumerate(stages):
        letters = [letter for letter in options if shape.format(letter) in said]
        if letters:
            place = shape if number == 0 else " {} "
            return _last(letters, lambda letter, place=place: said.rfind(place.format(letter)))  # type: ignore[misc]
    if len(said.split()) <= WORDS_OF_A_TEXT:
        return ""
    lower = said.lower()
    letters = [letter for letter, option in options.items() if option.lower() in lower]
    return _last(letters, lambda letter: lower.rfind(options[letter].lower()))


def _last(letters: Sequence[str], place: Callable[[str], int]) -> str:
    """The letter that stands last; of equal places the first letter."""
    return max(letters, key=place) if letters else ""


def open_values(text: str) -> set[Value]:
    """What an answer to an open question says: the ends of its key sentences, and the numbers in these."""
    keys = _key_sentences(text)
    numbers = [number for key in keys for pattern in NUMBERS for number in pattern.findall(key)]
    return {value for said in (*keys, *numbers) for value in _values(said)}


def open_right(text: str, answers: Sequence[str]) -> bool:
    """Whether a number of the answer equals a true one, or a text of it *contains* a true one (quirk: "red" is in
    "infrared")."""
    truths = [value for answer in answers for value in _values(answer)]
    texts = [truth for truth in truths if isinstance(truth, str)]
    return any(
        any(truth in value for truth in texts) if isinstance(value, str) else value in truths
        for value in open_values(text)
    )


def _key_sentences(text: str) -> list[str]:
    """Of each sentence that has one of KEYS, the shortest rest behind the last occurrence of one of them."""
    whole = text.strip().strip(".").lower()
    sentences = SENTENCES.split(whole)
    answers: list[str] = []
    for number, sentence in enumerate(sentences):
        keys = (*KEYS, "=") if number == len(sentences) - 1 else KEYS
        shortest = ""
        for rest in (sentence.split(key)[-1].strip() for key in keys if key in sentence):
            if not shortest or len(rest) < len(shortest):
                shortest = rest
        if shortest and shortest not in TRIVIAL:
            answers.append(shortest)
    return answers or [whole]


def _values(text: str) -> list[Value]:
    """A number, rounded to two decimals, or lower-cased text; one character alone with a blank before and behind."""
    said = text.strip()
    try:
        return [round(float(said.replace(",", "")), 2)]
    except ValueError:
        said = said.lower()
        return [f" {said}", f"{said} "] if len(said) == 1 else [said]
