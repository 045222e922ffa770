"""The vocabulary against the texts of the mini world, and the tokenizers in registry/mini against the vocabulary."""

import itertools
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from vlbench.mini.captions import describe
from vlbench.mini.questions import LOOKALIKES, ask
from vlbench.mini.scenes import scene
from vlbench.mini.statements import KINDS, state
from vlbench.mini_models.vocabulary import PROMPTS, SPECIAL, save_tokenizer, words

COCO, NLVR2 = 4, 6  # their streams
MINI = Path(__file__).resolve().parents[2] / "registry" / "mini"
TOKENIZERS = ("blip-caption-mini", "blip-retrieval-mini", "blip-nlvr-mini", "clip-mini")


@cache
def texts() -> list[str]:
    """A sample of all texts that a mini model reads or writes."""
    found = [*LOOKALIKES, PROMPTS, *itertools.chain(*(kind.texts for kind in KINDS))]
    for index in range(150):
        found += [question.text for question, _ in ask(scene("train", index), "train", index, 12)]
        found += describe(scene("train", index, COCO), COCO, "train", index, 5, set())
        pictures = [scene("train", 8 * index + k, NLVR2) for k in range(8)]
        found += [each.text for each in state(list(zip(pictures[::2], pictures[1::2], strict=True)), "train", index, 2)]
    return [text.format(one="star", many="stars", number="two") for text in found]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_know_every_word(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MINI / name, local_files_only=True)
    assert [tokenizer.convert_ids_to_tokens(number) for number in range(5)] == list(SPECIAL)
    assert tokenizer.get_vocab() == {word: number for number, word in enumerate((*SPECIAL, *words()))}
    for text in texts():
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids, text
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        plain = tokenizer.decode(ids, skip_special_tokens=True)
        assert plain == text.lower().replace(" .", ".").strip(), text


def test_every_word_is_used() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MINI / TOKENIZERS[0], local_files_only=True)
    used = {tokenizer.convert_ids_to_tokens(number) for text in texts() for number in tokenizer(text).input_ids}
    assert used - set(SPECIAL) == set(words())


def test_tokenizer_files_are_as_written_by_this_version(tmp_path: Path) -> None:
    """Their words and settings, not their bytes: these change with the library."""
    save_tokenizer(tmp_path)
    written = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for name in (*TOKENIZERS, "blip-vqa-mini"):
        kept = AutoTokenizer.from_pretrained(MINI / name, local_files_only=True)
        assert type(kept) is type(written)
        assert kept.special_tokens_map == written.special_tokens_map
        assert kept.get_vocab().keys() <= written.get_vocab().keys()
