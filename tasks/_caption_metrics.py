"""BLEU, ROUGE-L, CIDEr, METEOR and SPICE of captions, equal to pycocoevalcap's, as numbers of each image.

Of an image these give a list: [CIDEr, BLEU's ten numbers, ROUGE-L], then METEOR's six numbers where METEOR was
measured, then SPICE where that was. Its length says which: 12, 13 (SPICE), 18 (METEOR) or 19 (both). BLEU and METEOR
of a corpus are those of the summed numbers, not means; the other metrics are means over the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge

from ._java_metrics import Unavailable, meteor, meteor_missing, meteor_statistics, spice, spice_missing
from ._ptb import ptb_tokenize

ORDERS = 4  # n-grams of 1 to 4 words
TINY, SMALL = 1e-15, 1e-9  # what pycocoevalcap's BLEU adds, so that 0 / 0 is 0
BLEU = slice(1, 11)
ROUGE = 11
FIXED = 12
METEOR_NUMBERS = 6
TITLES = {
    "cider": "CIDEr", **{f"bleu{n}": f"BLEU-{n}" for n in range(1, ORDERS + 1)},
    "rouge_l": "ROUGE-L", "meteor": "METEOR", "spice": "SPICE",
}  # fmt: skip


def measure(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> tuple[list[list[float]], dict[str, str]]:
    """One list of numbers an image (see above), and metric -> reason for what could not be measured.

    references: one or more captions of each image; all images that are evaluated, as CIDEr weighs an n-gram by the
    number of these whose references have it. candidates: the caption of each image.
    """
    texts = [[_tokenised(text) for text in captions] for captions in references]
    said = [_tokenised(text) for text in candidates]
    columns = [
        [[value] for value in cider(texts, said)],
        [bleu_numbers(captions, text) for captions, text in zip(texts, said, strict=True)],
        [[rouge_l(captions, text)] for captions, text in zip(texts, said, strict=True)],
    ]
    programs: dict[str, Callable[[], list[list[float]]]] = {
        "meteor": lambda: meteor_statistics(texts, said),
        "spice": lambda: [[value] for value in spice(texts, said)],
    }
    reasons: dict[str, str] = {}
    for metric, program in programs.items():
        try:
            columns.append(program())
        except Unavailable as reason:
            reasons[metric] = str(reason)
    return [[number for part in parts for number in part] for parts in zip(*columns, strict=True)], reasons


def unmeasured() -> dict[str, str]:
    """Metric -> why this machine cannot measure it, as far as that shows before it is tried."""
    reasons = {"meteor": meteor_missing(), "spice": spice_missing()}
    return {metric: reason for metric, reason in reasons.items() if reason}


def aggregate(vectors: Sequence[Sequence[float]]) -> dict[str, float]:
    """Metric -> value of the corpus, times 100 (CIDEr 133.3, BLEU-4 40.4), of what all the lists have."""
    images = len(vectors)
    if not images:
        return {}
    sums = [math.fsum(column) for column in zip(*vectors, strict=True)]
    metrics: Mapping[str, float] = {
        "cider": sums[0] / images,
        **{f"bleu{n}": value for n, value in enumerate(bleu(sums[BLEU]), 1)},
        "rouge_l": sums[ROUGE] / images,
        **({"meteor": meteor(sums[FIXED : FIXED + METEOR_NUMBERS])} if len(sums) >= FIXED + METEOR_NUMBERS else {}),
        **({"spice": sums[-1] / images} if (len(sums) - FIXED) % METEOR_NUMBERS else {}),
    }
    return {metric: 100 * value for metric, value in metrics.items()}


def bleu_numbers(references: Sequence[str], candidate: str) -> list[float]:
    """[clipped matches of n = 1..4, n-grams of the candidate for n = 1..4, its length, the closest reference's].

    Of two references that are equally close in length the shorter one counts.
    """
    cooked = cook_test(candidate, cook_refs(references, n=ORDERS), eff="closest", n=ORDERS)
    return [*map(float, cooked["correct"]), *map(float, cooked["guess"]), cooked["testlen"], cooked["reflen"]]


def bleu(numbers: Sequence[float]) -> list[float]:
    """BLEU-1 to BLEU-4 in [0, 1] of the summed numbers of a corpus (Papineni et al., ACL 2002)."""
    correct, guessed, (length, closest) = numbers[:ORDERS], numbers[ORDERS : 2 * ORDERS], numbers[2 * ORDERS :]
    ratio = (length + TINY) / (closest + SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n, (hits, tries) in enumerate(zip(correct, guessed, strict=True), 1):
        product *= (hits + TINY) / (tries + SMALL)
        scores.append(penalty * product ** (1 / n))
    return scores


def rouge_l(references: Sequence[str], candidate: str) -> float:
    """ROUGE-L in [0, 1] of one image, with beta 1.2 (Lin, 2004)."""
    return float(Rouge().calc_score([candidate], references))


def cider(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> list[float]:
    """CIDEr of each image, 1.0 being what papers print as 100 (Vedantam et al., CVPR 2015).

    It is CIDEr-D (clipped, with a penalty for another length), as everywhere. A set of one image has 0, since the
    logarithm of the number of images is what an n-gram can weigh at most.
    """
    if not any(text for captions in references for text in captions):
        return [0.0] * len(candidates)
    scorer = CiderScorer()
    for captions, text in zip(references, candidates, strict=True):
        scorer += (text, captions)
    return [float(value) for value in scorer.compute_score()[1]]


def _tokenised(text: str) -> str:
    return " ".join(ptb_tokenize(text))
