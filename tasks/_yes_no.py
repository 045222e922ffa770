"""What a written answer says to a yes/no question, by the rule of each evaluator: "yes", "no", or "" where it says
neither.

The rules differ by more than pruning does, and all of them have oddities that published numbers contain. Each function
is one evaluator's, named with the place where it is defined; the oddities are said beside it.
"""

from __future__ import annotations

from ._vqa_accuracy import without_punctuation

REQUEST = " Please answer yes or no."  # that ends the questions of MME, and of tables made of others
PREFIX = 4  # characters of an answer that MME's rules look at


def pope_official(text: str) -> str:
    """evaluate.py of POPE (RUCAIBox/POPE @ 3df3ba1), which LLaVA's copy equals: never "".

    Up to the first period, without commas, split at single blanks: "no" where a word is exactly No, no or not; anything
    else, the empty text included, is "yes". "NO", "no\\n", "None" and "cannot tell" are thus "yes".
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"}.intersection(words) else "yes"


def exact(text: str) -> str:
    """lmms-eval's rule for POPE (@ 75571cf): the whole answer, without case and outer blanks."""
    word = text.lower().strip()
    return word if word in ("yes", "no") else ""


def one_word(text: str) -> str:
    """VLMEvalKit's rule (@ e8e78f0, YOrN_Extraction): one of the words yes and no, and not the other."""
    words = without_punctuation(text.lower()).split()
    yes, no = "yes" in words, "no" in words
    return "" if yes is no else "yes" if yes else "no"


def mme_official(text: str) -> str:
    """calculation.py of MME's eval_tool: lower case, no stripping; exactly yes or no, else the one that the first four
    characters contain, "yes" before "no". "know", "snow" and "not" are thus "no"; "the answer is yes" is neither.

    The tool reads an answer as the last column of a line: a line break that ends it is looked at as well, and what
    stands behind a line break inside is another line, which it cannot read. Here answers have none inside.
    """
    return _by_prefix(text.lower())


def mme_lmms(text: str) -> str:
    """lmms-eval's rule for MME (@ 75571cf): the same after stripping blanks and dropping periods; y and n count."""
    said = text.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(said, "") if len(said) == 1 else _by_prefix(said)


def _by_prefix(said: str) -> str:
    if said in ("yes", "no"):
        return said
    begin = said[:PREFIX]
    return "yes" if "yes" in begin else "no" if "no" in begin else ""


def asserted(text: str) -> bool:
    """Whether an answer has yes, no or not among its words at all: what `unparsed` counts where a rule takes everything
    else for "yes" (POPE's own)."""
    words = without_punctuation(text.lower()).split()
    return not {"yes", "no", "not"}.isdisjoint(words)
