"""Which option a written answer chooses, by the rule of each evaluator: a letter, or "" where it chooses none.

options: letter -> text, in the order asked. Each function is one evaluator's, named with the place where it is defined;
oddities that published numbers contain are said beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Options = Mapping[str, str]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
NO_ANSWER = "Failed to obtain answer via API"
NONE = "Z"  # VLMEvalKit's letter for "no option"
AMONG_THE_LAST = 5  # words in which VLMEvalKit takes a letter for the answer
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
SAID_SO = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
# MMBench's evaluator in lmms-eval: what may stand directly before and behind a letter, in the order tried.
AROUND = (
    ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."),
    (":", ""), (":", ","), (":", "."), (":", ")"), (":", ")."),
)  # fmt: skip
QUANTIFIED = 3  # words of an answer above which a lone A may be an article
ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
LETTER_AND_PERIOD = re.compile(r"\s*([A-Z])\.")


def lettered(texts: Sequence[str]) -> dict[str, str]:
    """A, B, C ... -> text."""
    return dict(zip(LETTERS, texts, strict=False))


def vlmevalkit(text: str, options: Options) -> str:
    """VLMEvalKit without a judge model (@ e8e78f0, can_infer): the letter, "Z" where the answer says that there is
    none, "" where nothing is found (which counts as wrong, too).

    Marks become blanks; the one option's letter among the words, where it is one of the last five; a lone Z; else
    "answer is X", in any case ("answer is a cat" is A); else the one option whose text the answer has.
    """
    if NO_ANSWER not in text:
        if any(refusal in text for refusal in REFUSALS):
            return NONE
        words = text.translate(MARKS).split()
        letters = [letter for letter in options if letter in words]
        if len(letters) == 1 and words.index(letters[0]) > len(words) - AMONG_THE_LAST:
            return letters[0]
        if not letters and NONE in words:
            return NONE
        said = SAID_SO.search(text)
        if said and said[1].upper() in options:
            return said[1].upper()
    if len(text.lower()) > 2 * sum(len(option) for option in options.values()):
        return ""
    return _only_text(text, options)


def lmms_mmbench(text: str, options: Options) -> str:
    """lmms-eval without a judge for MMBench (@ 75571cf, mmbench_evals.py, method "static"): its own search for A to E
    (a letter that the question does not have is taken, too), then for option texts, then `lmms_letter`."""
    said = text.strip()
    return _lmms_letter_word(said) or _only_text(said, options) or lmms_letter(said, list(options))


def _lmms_letter_word(text: str) -> str:
    letters = LETTERS[:5]
    if NO_ANSWER in text:
        return ""
    words = text.split()
    alone = [letter for letter in letters if letter in words]
    if len(alone) == 1 and not ("A" in words and len(words) > QUANTIFIED):
        return alone[0]
    for before, behind in AROUND:
        marked = [letter for letter in letters if f"{before}{letter}{behind}" in words]
        if len(marked) == 1:
            return marked[0]
    return ""


def _only_text(text: str, options: Options) -> str:
    """The one option whose text the answer has, without case."""
    said = text.lower()
    having = [letter for letter, option in options.items() if option.lower() in said]
    return having[0] if len(having) == 1 else ""


# lmms-eval's shared extractor (@ 75571cf, _task_utils/mcq_extract.py): how sure a finding is.
START, END, PHRASE, PARENTHESES, PERIOD, COLON, CLOSED, SPACED = 10, 9, 7, 6, 5, 4, 3, 2
PHRASES = (
    "the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is", "best answer is",
    "the correct option is", "correct option is", "the best option is", "best option is", "the choice is", "choice is",
    "the correct choice is", "correct choice is", "i choose", "i select", "i pick", "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip


def lmms_letter(text: str, letters: Sequence[str]) -> str:
    """lmms-eval's extractor of letters (@ 75571cf, extract_mcq_answer), which MMStar and RealWorldQA use: the surest
    finding, and of equally sure ones the last. A letter inside a word counts as well, where nothing better is found."""
    said = text.strip()
    if not said:
        return ""
    for mark in ",.!?;:'\"":
        said = said.strip(mark)
    padded = f" {said} "
    inner = padded.strip()
    letters_seen: list[tuple[int, int, str]] = []  # how sure, where, what
    shapes = (("({})", PARENTHESES), ("{}.", PERIOD), ("{}:", COLON), ("{})", CLOSED), ("{} ", SPACED))
    for shape, sure in shapes:
        letters_seen += [(sure, padded.rfind(shape.format(c)), c) for c in letters if shape.format(c) in padded]
    letters_seen += [
        (PHRASE, at, c) for after in _phrases(padded.lower()) for c in letters if (at := padded.find(c, after)) >= 0
    ]
    letters_seen += [(START, 0, c) for c in letters if inner.startswith(c) and not inner[1:2].isalpha()]
    letters_seen += [(END, len(padded) - 1, c) for c in letters if inner.endswith(c) and not inner[-2:-1].isalpha()]
    if not letters_seen:
        letters_seen = [(0, padded.rfind(c), c) for c in letters if c in padded]
    return max(letters_seen, key=lambda one: one[:2])[2] if letters_seen else ""


def _phrases(said: str) -> list[int]:
    """Where each phrase that the answer has ends, of its first occurrence."""
    return [at + len(phrase) for phrase in PHRASES if (at := said.find(phrase)) >= 0]


def scienceqa_llava(text: str, options: Options) -> str:
    """LLaVA's eval_science_qa.py (@ c121f04): exactly a letter A to E, or such a letter, a period and a blank, or
    "The answer is X." once. Nothing is stripped; a letter beyond the choices chooses none of them."""
    letters_of_rule = LETTERS[:5]
    if len(text) == 1 and text in letters_of_rule:
        letter = text
    elif len(text) >= 3 and text[0] in letters_of_rule and text[1:3] == ". ":
        letter = text[0]
    else:
        said = ANSWER_IS.findall(text)
        letter = said[0] if len(said) == 1 else ""
    return letter if letter in options else ""


def scienceqa_lmms(text: str, options: Options) -> str:
    """lmms-eval's rule for ScienceQA (@ 75571cf): a letter in any case and nothing else, or a capital and a period."""
    said = text.strip()
    if len(said) == 1 and said.upper() in options:
        return said.upper()
    return said[0] if len(said) >= 2 and said[0].isupper() and said[1] == "." and said[0] in options else ""


def first_character(text: str, options: Options) -> str:
    """lmms-eval's rule for SEED-Bench (@ 75571cf): the first character, in any case ("a cat" is A, "The" none)."""
    letter = text.strip()[:1].upper()
    return letter if letter in options else ""


def letter_and_period(text: str) -> str:
    """lmms-eval's filter for AI2D (@ 75571cf): the capital before a period that begins the answer, else the answer."""
    said = LETTER_AND_PERIOD.match(text)
    return said[1] if said else text


def ai2d_lmms(text: str, options: Options) -> str:
    """lmms-eval's rule for AI2D: after that filter, the letter alone, without case and ASCII punctuation."""
    said = _unmarked(letter_and_period(text)).upper()
    return said if len(said) == 1 and said in options else ""


def _unmarked(text: str) -> str:
    return re.sub(r"[!-/:-@\[-`{-~]", "", text.lower())


def realworldqa(text: str, answer: str) -> bool:
    """lmms-eval's rule for RealWorldQA (@ 75571cf): `lmms_letter` where the answer is one of A to D, else equality
    without case, outer blanks and the period at the end."""
    truth = answer.strip()
    if truth.upper() in ("A", "B", "C", "D"):
        return lmms_letter(text, "ABCD") == truth.upper()
    return text.lower().strip().rstrip(".") == truth.lower()


def lines(options: Options) -> str:
    """The options as they are asked: a line "A. text" each."""
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())
