"""python -m vlbench.mini_models.vocabulary FOLDER...: write the tokenizer of the mini models into each folder.

Its vocabulary is every word of the mini world. BLIP's [DEC] and [ENC] have the two numbers after it: as in the
original's files, they stand in the model's configuration (bos_token_id, vocab_size) and not among the words.
"""

import sys
from pathlib import Path

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

    BertTokenizer(vocab={word: number for number, word in enumerate((*SPECIAL, *words()))}).save_pretrained(folder)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        save_tokenizer(Path(name))
