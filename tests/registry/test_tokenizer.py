"""The tokenizer of a folder is the one that it names. Oracle: its tokenizer.json, read by the library in Rust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import BertTokenizer, Qwen2Tokenizer

from tests.registry.folders import byte_tokenizer
from vlbench.errors import UserError
from vlbench.plugins.table import table

TEXT = "the red circle, and a blue one"
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "circle", "and", "a", "blue", "one", ",")


def read(folder: Path) -> Any:
    module = __import__(table("models").get("siglip2-base-224").load().__module__, fromlist=["read_tokenizer"])
    return module.read_tokenizer(folder, 10**6)


def folder_of(folder: Path, tokenizer: Any, kind: str) -> Path:
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3", "bert"])
def test_words_are_those_of_the_folder_whatever_kind_of_model_it_names(tmp_path: Path, kind: str) -> None:
    """transformers takes Qwen2's tokenizer for every qwen2, which reads these words as nothing."""
    folder = folder_of(tmp_path, BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}), kind)
    wanted = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
    assert len(wanted) == 10
    assert read(folder)(TEXT).input_ids == wanted


def test_the_tokenizer_that_a_qwen_names_stays_its_own(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "w", *"0123456789", "\u0120", "[END]"]
    own = Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], eos_token="[END]")
    found = read(folder_of(tmp_path, own, "qwen2"))
    assert type(found) is Qwen2Tokenizer
    assert found("w3 w4").input_ids == own("w3 w4").input_ids


def test_without_tokenizer_json_the_other_one_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, byte_tokenizer({}), "qwen2")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({"w": 0, "\u0120": 1}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(UserError, match="names the tokenizer GPT2Tokenizer, and transformers takes Qwen2Tokenizer"):
        read(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model": 3}', '{"version": "1.0", "model": {"type": "Evil"}}'])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    folder = folder_of(tmp_path, byte_tokenizer({}), "llama")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"the tokenizer in .* cannot be read"):
        read(folder)
