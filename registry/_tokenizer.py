"""The tokenizer of a folder, by the folder's own word, and without running anything of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from vlbench.disk.storage import read_json
from vlbench.errors import UserError

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "tokenizer.model", "vocab.json")
WHOLE = "tokenizer.json"  # says all of a tokenizer, whatever its class
PROBED = 5  # words of a tokenizer that are tried


def read_tokenizer(folder: Path, vocabulary: int) -> Any:
    """The tokenizer in `folder`, of whatever kind. Raises UserError where there is none, or one with more words than
    the model's `vocabulary`."""
    if not any((folder / name).is_file() for name in (*TOKENIZER, "vocab.txt")):
        raise UserError(f"{folder} has no tokenizer: put the tokenizer files of its checkpoint there.")
    try:
        described = any((folder / name).is_file() for name in TOKENIZER)
        tokenizer = (AutoTokenizer if described else BertTokenizer).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        tokenizer = _by_its_own_word(tokenizer, folder)
    except UserError:
        raise
    except Exception as error:  # the library in Rust raises Exception itself, for whatever its files say
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the tokenizer in {folder} cannot be read ({reason}): put the tokenizer files of its checkpoint there."
        ) from None
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"the tokenizer in {folder} has {len(tokenizer)} words, and the model {vocabulary}: put the tokenizer "
            "there that the model was trained with."
        )
    _refuse_deaf(tokenizer, folder)
    return tokenizer


def _by_its_own_word(tokenizer: Any, folder: Path) -> Any:
    """transformers takes the tokenizer of some kinds of model (qwen2) by config.json alone, whatever class
    tokenizer_config.json names. Then tokenizer.json is read as it stands; without it nothing says what words are."""
    file, taken = folder / "tokenizer_config.json", type(tokenizer).__name__
    content = read_json(file) if file.is_file() else {}
    stated = content.get("tokenizer_class") if isinstance(content, dict) else None
    if (
        stated is None
        or type(tokenizer) is PreTrainedTokenizerFast
        or str(stated).removesuffix("Fast") == taken.removesuffix("Fast")
    ):
        return tokenizer
    if (folder / WHOLE).is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    raise UserError(
        f"{file} names the tokenizer {stated}, and transformers takes {taken} for this kind of model: put the "
        f"{WHOLE} of the checkpoint beside it, which is then read as it stands."
    )


def _refuse_deaf(tokenizer: Any, folder: Path) -> None:
    """Raise UserError where it reads words of its own vocabulary as nothing."""
    numbered = tokenizer.get_vocab()
    words = [word for word in sorted(numbered, key=numbered.get) if word.isascii() and word.isalnum()][:PROBED]
    if words and not any(tokenizer(word, add_special_tokens=False).input_ids for word in words):
        raise UserError(
            f"{type(tokenizer).__name__}, which transformers takes for {folder}, reads words of its vocabulary "
            f"({', '.join(words)}) as nothing: put the tokenizer files there that the model was trained with."
        )
