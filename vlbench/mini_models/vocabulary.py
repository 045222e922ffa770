"""python -m vlbench.mini_models.vocabulary FOLDER...: write the tokenizer of the mini models into each folder.

A folder whose recipe.json names several tasks (A+B) gets the words of their train splits, with capitals. Else the
vocabulary is every word of the mini world. BLIP's [DEC] and [ENC] have the two numbers after it: as in the
original's files, they stand in the model's configuration (bos_token_id, vocab_size) and not among the words.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..disk.storage import read_json
from ..mini.questions import phrase
from ..mini.scenes import COLORS, SHAPES, SIZES

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NOUNS = (None, *SHAPES)  # of a description; None is "object"
QUESTIONS = "is are there a how many more than what color shape the left right of above below ? yes no 0 1 2 3 4 5"
CAPTIONS = """
    a two three four five including with only just and nothing else there is are this picture shows the image
    left right of to above below on at top bottom in middle , .
"""
STATEMENTS = """
    the left right image images contains contain a there is are in shows no both either neither exactly only of at
    least one two three four total more than same number .
"""
PROMPTS = "a picture of a photo of a ."  # BLIP's for captions, CLIP's for classes


def words() -> list[str]:
    """Sorted words and signs of all questions, answers, captions and statements, as BERT's tokenizer splits them."""
    nouns = {phrase((None, None, shape), plural) for shape in NOUNS for plural in (False, True)}
    return sorted({*SIZES, *COLORS, *nouns, *f"{QUESTIONS} {CAPTIONS} {STATEMENTS} {PROMPTS}".split()})


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    from transformers import BertTokenizer

    BertTokenizer(vocab=_numbered(words())).save_pretrained(folder)


def save_cased_tokenizer(folder: Path, texts: Iterable[str]) -> None:
    """The same for models that read and write capitals (the letters of options): of every word of `texts`."""
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from transformers import BertTokenizer

    split = BertPreTokenizer().pre_tokenize_str
    vocabulary = {word for text in dict.fromkeys(texts) for word, _ in split(text)}
    BertTokenizer(vocab=_numbered(sorted(vocabulary)), do_lower_case=False).save_pretrained(folder)


def _numbered(vocabulary: Iterable[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate((*SPECIAL, *vocabulary))}


def taught_texts(names: Sequence[str]) -> Iterator[str]:
    """Questions as they are asked and answers, of the train splits of several tasks of the mini world."""
    from .lessons import lessons

    for sample in lessons(names):
        yield sample.text
        yield from sample.target


if __name__ == "__main__":
    for name in sys.argv[1:]:
        tasks = str(read_json(Path(name) / "recipe.json")["task"]).split("+")
        if len(tasks) > 1:
            save_cased_tokenizer(Path(name), taught_texts(tasks))
        else:
            save_tokenizer(Path(name))
