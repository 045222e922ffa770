"""How right a short answer is, by the rule of each evaluator: relaxed accuracy, ANLS, a text that is contained.

Each function is one evaluator's, named with the place where it is defined; oddities that published numbers contain are
said beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

TOLERANCE = 0.05  # of a number, relative (Masry et al. 2022, arXiv 2203.10244, section 5.1)
ENOUGH = 0.5  # ANLS below this counts as 0 (Biten et al. 2019, arXiv 1905.13648)
FULL_WIDTH = {0x3000: " ", **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}}


def relaxed(prediction: str, target: str) -> bool:
    """lmms-eval's relaxed accuracy (@ 75571cf, from Qwen-VL's): numbers within 5 %, other texts equal without case.

    A number is what Python's float() takes, and is divided by 100 where "%" ends it; a target of 0, and one that is no
    number ("1,000"), is compared as text. Years are thus right within 5 % (2019 for 1950), "5%" is wrong for "5".
    """
    said, truth = number(prediction), number(target)
    if said is not None and truth:
        return abs(said - truth) / abs(truth) <= TOLERANCE
    return prediction.lower() == target.lower()


def relaxed_vlmevalkit(prediction: str, target: str) -> bool:
    """VLMEvalKit's (@ e8e78f0): the same with the prediction's outer blanks dropped."""
    return relaxed(prediction.strip(), target)


def number(text: str) -> float | None:
    """What a text says as a number; None where it is none."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one question (lmms-eval @ 75571cf and VLMEvalKit @ e8e78f0, alike).

    Distances are of lower-cased texts with single blanks, lengths of the texts as they are (quirk); the nearest answer
    counts, and nothing below one half.
    """
    said = _plain(prediction)
    shares = []
    for answer in answers:
        length = max(len(answer.upper()), len(prediction.upper()))
        shares.append(distance(_plain(answer), said) / length if length else 0.0)
    similarity = 1 - min(shares)
    return similarity if similarity >= ENOUGH else 0.0


def anls_mmf(prediction: str, answers: Sequence[str]) -> float:
    """mmf's, as LLaVA's m4c_evaluator.py has it (@ c121f04): distances and lengths of stripped, lower-cased texts, the
    best answer. The original divides by zero where both are empty: here that is 1."""
    said = prediction.lower().strip()
    return max(_similarity_mmf(said, answer.lower().strip()) for answer in answers)


def _similarity_mmf(said: str, truth: str) -> float:
    length = max(len(said), len(truth))
    similarity = 1 - distance(said, truth) / length if length else 1.0
    return similarity if similarity >= ENOUGH else 0.0


def _plain(text: str) -> str:
    return " ".join(text.strip().lower().split())


def distance(a: str, b: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions that make one text of the other."""
    shorter, longer = sorted((a, b), key=len)
    row = list(range(len(shorter) + 1))
    for i, c in enumerate(longer, 1):
        above, row = row, [i]
        for j, d in enumerate(shorter, 1):
            row.append(above[j - 1] if c == d else 1 + min(above[j - 1], above[j], row[j - 1]))
    return row[-1]


def contained(prediction: str, answers: Sequence[str], *, formula: bool, folded: bool) -> bool:
    """OCRBench's rule (VLMEvalKit @ e8e78f0; lmms-eval @ 75571cf with `folded`): an answer is in the prediction.

    Both in lower case and in one line; of a formula the case stays and blanks go. folded: full-width characters are
    made plain ones first.
    """

    def plain(text: str) -> str:
        if formula:
            return text.strip().replace("\n", " ").replace(" ", "")
        return (text.translate(FULL_WIDTH) if folded else text).lower().strip().replace("\n", " ")

    said = plain(prediction)
    return any(plain(answer) in said for answer in answers)
