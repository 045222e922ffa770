"""BLIP's texts: how they are cleaned (data/utils.py of BLIP and UPop), the tokenizer, and batches of one length."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer

from vlbench.errors import UserError

PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
VOCABULARY = "bert-base-uncased's vocab.txt (https://huggingface.co/google-bert/bert-base-uncased)"


def clean_caption(text: str, words: int) -> str:
    """pre_caption: lower case, punctuation to spaces, at most `words` words. Captions, and NLVR2's sentences."""
    text = re.sub(r"\s{2,}", " ", PUNCTUATION.sub(" ", text.lower())).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:words])


def clean_question(text: str, words: int) -> str:
    """pre_question: as above, but punctuation goes without leaving a space."""
    return " ".join(PUNCTUATION.sub("", text.lower()).rstrip(" ").split(" ")[:words])


def read_tokenizer(folder: Path) -> Any:
    """The BERT tokenizer whose vocab.txt or tokenizer.json is in `folder`. Raises UserError saying what goes there."""
    if not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise UserError(f"{folder} has no vocabulary for these weights: put {VOCABULARY} there, named vocab.txt.")
    try:
        return BertTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the tokenizer in {folder} cannot be read ({error}): put {VOCABULARY} there.") from error


def check_tokenizer(tokenizer: Any, text: Any, folder: Path) -> None:
    """Raise UserError where the tokenizer's words are not those of a model of the text configuration `text`.

    BLIP adds [DEC] (the configuration's bos) and [ENC], which a tokenizer may or may not know, to BERT's words.
    """
    if not text.bos_token_id <= len(tokenizer) <= text.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {len(tokenizer)} words, and the model needs {text.bos_token_id}: put the "
            f"vocabulary there that it was trained with ({VOCABULARY} for the released ones)."
        )
    for name in ("sep", "pad"):
        token, wanted = getattr(tokenizer, f"{name}_token_id"), getattr(text, f"{name}_token_id")
        if token != wanted:
            raise UserError(
                f"the tokenizer in {folder} has [{name.upper()}] at {token}, and the model at {wanted}: put the "
                "vocabulary there that it was trained with."
            )


def by_length(ids: Sequence[Sequence[int]], rows: int) -> Iterator[tuple[list[int], Tensor]]:
    """(indices, (r, L) token ids) of the texts, r <= rows of one length together: nothing is padded."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    start = 0
    while start < len(order):
        size = len(ids[order[start]])
        group = [i for i in order[start : start + rows] if len(ids[i]) == size]
        yield group, torch.tensor([ids[i] for i in group])
        start += len(group)
