"""Oracle: the Java tokeniser itself where there is Java, and what it said of 1,225 captions and the strings below."""

from __future__ import annotations

import importlib
import json
import random
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ptb = importlib.import_module("vlbench.tasks._ptb")
tokenize = ptb.ptb_tokenize

# pycocoevalcap's own list
PUNCTUATIONS = [
    "''",
    "'",
    "``",
    "`",
    "-LRB-",
    "-RRB-",
    "-LCB-",
    "-RCB-",
    ".",
    "?",
    "!",
    ",",
    ":",
    "-",
    "--",
    "...",
    ";",
]

# What Java's tokeniser and pycocoevalcap's filter give, recorded.
RECORDED = {
    "A man's dogs' bowls don't fit.": "a man 's dogs bowls do n't fit",
    "I'm we've they'll he'd she's you're": "i 'm we 've they 'll he 'd she 's you 're",
    "can't won't isn't cannot ain't": "ca n't wo n't is n't can not ai n't",
    "gonna wanna gotta gimme lemme dunno": "gon na wan na got ta gim me lem me dunno",
    "'tis 'twas the season": "'t is 't was the season",
    "rock 'n' roll, y'all, ma'am, o'clock, 'em": "rock 'n' roll y' all ma'am o'clock 'em",
    "O'Brien d'Avignon goin' fishin'": "o'brien d'avignon goin fishin",
    "\"hello\" 'hi' ``x'' “a” ‘b’ «c»": "hello hi x a b c",
    "it’s don’t it´s it`s ’”[": "it 's do n't it ´ s it s ''' -lsb-",
    "(two) [three] {four} <five>": "-lrb- two -rrb- -lsb- three -rsb- -lcb- four -rcb- <five>",
    "Wow! What?! Really?? no!!": "wow what ?! really ?? no !!",
    "wait... and … or .. ok . . . end": "wait and or ok end",
    "well-lit T-shirt 5-year-old black-and-white": "well-lit t-shirt 5-year-old black-and-white",
    "a - b -- c --- d ---- e ----- f – g — h": "a b c d e ----- f g h",
    "and/or w/o w/ black/white a/b/c/d 24/7": "and/or w/o w / black/white a/b/c / d 24/7",
    "R&B AT&T b&b M&Ms &amp; A&amp;B": "r&b at&t b & b m&m s & a&b",
    "$5 $1,000.50 US$5 50% #1 5¢ £5 €5 ¥5": "$ 5 $ 1,000.50 us$ 5 50 % # 1 5 cents # 5 $ 5 ¥ 5",
    "3.5 .5 1,000 10:30 10:30am 5ft 1st 2x4 -5 +5": "3.5 .5 1,000 10:30 10:30 am 5ft 1st 2x4 -5 +5",
    "1/2 1 1/2 2 3/4 ½ 1½ 10/10/2010": "1/2 1\u00a01/2 2\u00a03/4 1/2 1 1/2 10/10/2010",
    "555-1234 (555) 555-1234 123.456.7890": "555-1234 -lrb-555-rrb-\u00a0555-1234 123.456.7890",
    "the '90s '90 1990's 5'9\" 6\"": "the '90s '90 1990 's 5 9 6",
    "e.g. i.e. a.m. U.S. U.S u.s.a. Ph.D.": "e.g. i.e. a.m. u.s. u.s u.s.a. ph.d.",
    "Mr. Smith of St. Louis Inc. etc. vs. No. 5 no. five": "mr. smith of st. louis inc. etc. vs. no. 5 no five",
    "Mass. mass. Ill. ill. Oct. sat. fig. 3 fig. x": "mass. mass ill. ill oct. sat fig. 3 fig x",
    "Sfc. Msgr. mlle. supt. attys. Bancorp. bhd. natl. mfg. MFG. pty. pp. 3": (
        "sfc. msgr. mlle. supt. attys. bancorp. bhd. natl. mfg. mfg pty. pp. 3"
    ),
    "vitamin C. b. x.": "vitamin c. b. x.",
    "It is a. The end": "it is a the end",
    "end.Next sentence.Then road!a etc.A": "end.next sentence.then road!a etc. a",
    "dog., cat; big-dog., 1st.,": "dog. cat big-dog. 1st.",
    "http://a.b/c?d=1. www.foo.com, foo.com Foo1.com bar.edu": "http://a.b/c?d=1 www.foo.com foo.com foo1.com bar.edu",
    "me@foo.com @bob #tag #tag_1 # 1": "me@foo.com @bob #tag #tag _ 1 # 1",
    "photo.jpg 1.jpg a-b.jpg C++ c#": "photo.jpg 1.jpg a-b jpg c++ c#",
    ":) ;-) :D <3 ^_^": ":-rrb- ;--rrb- :d < 3 ^_^",
    "a_b _a_ x*y ** == ~ ^ | \\": "a_b _ a _ x * y ** = = ~ ^ | \\",
    "café naïve-like 日本語 Ünï soft\u00adhyphen cafe\u0301": "café naïve-like 日本語 ünï softhyphen cafe\u0301",
    "a😀b 😀 ☺ ♥ 90°F": "a b ☺ ♥ 90 ° f",
    "<b>bold</b> <a b='c d'> a < b > c &lt;i&gt; &nbsp;": "<b> bold </b> <a\u00a0b='c\u00a0d'> a < b > c < i >",
    "......5 ...5 . . . .5": ".5 5 5",
    "  two  blanks\tand\u00a0more \u3000": "two blanks and more",
    "": "",
    " .,;:!?-' ": "!?",
}  # fmt: skip
PARTS = r"""
    a A the The dog DOG é café s t S I U.S. U.S e.g. etc. Mr. St. No. no. st. Inc. cannot gonna don't it's James's
    dogs' 'em 'n' o'clock cats 1 2 10 100 1,000 3.5 1/2 24/7 50% $5 #1 1st 10:30 10:30am '90s 1990s 5-year-old
    T-shirt black-and-white and/or w/ R&B AT&T & &amp; @bob foo@bar.com http://a.b/c foo.com . , ; : ! ? ... … -- -
    – — _ / \ | * + = % $ # @ ^ ~ ` ' " ( ) [ ] { } < > “ ” ‘ ’ « » € £ ½ ° × · • It Then fig.
"""
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java (the original tokeniser)")


def awkward(count: int, seed: int) -> list[str]:
    """Strings of awkward parts, glued together or not."""
    draw, parts = random.Random(seed), PARTS.split()
    return [
        "".join(draw.choice(parts) + draw.choice(("", " ")) for _ in range(draw.randint(1, 7))) for _ in range(count)
    ]


def javas(texts: list[str], folder: Path) -> list[list[str]]:
    """The original's tokens. A line with a period is put between, as it looks at the next caption's first word."""
    spec = find_spec("pycocoevalcap")
    assert spec is not None
    assert spec.submodule_search_locations
    jar = Path(spec.submodule_search_locations[0], "tokenizer/stanford-corenlp-3.4.1.jar")
    file = folder / "lines.txt"
    file.write_text("".join(f"{text}\n.\n" for text in texts), encoding="utf-8")
    command = [
        "java",
        "-cp",
        str(jar),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
        str(file),
    ]
    lines = subprocess.run(command, capture_output=True, check=True, timeout=600).stdout.decode().split("\n")
    found = [[token for token in line.rstrip().split(" ") if token not in PUNCTUATIONS] for line in lines]
    assert found[1 : 2 * len(texts) : 2] == [[]] * len(texts)
    return [[token for token in tokens if token] for tokens in found[: 2 * len(texts) : 2]]


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("text", RECORDED)
def test_recorded_strings(text: str) -> None:
    assert " ".join(tokenize(text)) == RECORDED[text]


def test_every_string_of_the_oracle(shared: Path) -> None:
    oracles, data = shared / "oracles/metrics/caption", shared / "data/coco_val2017_mini"
    told = load(oracles / "ptb_tokens_tricky_a.json")
    references: dict[str, list[str]] = {}
    for row in sorted(load(data / "captions_val2017_mini.json")["annotations"], key=lambda row: row["id"]):
        references.setdefault(str(row["image_id"]), []).append(row["caption"])
    said = {str(row["image_id"]): [row["caption"]] for row in load(oracles / "predictions_a.json")["tricky"]}
    for given, expected in ((references, told["references"]), (said, told["predictions"])):
        found = {i: [" ".join(tokenize(text)) for text in texts] for i, texts in given.items()}
        assert found == expected


@needs_java
@pytest.mark.slow
def test_real_captions_are_the_originals(shared: Path, tmp_path: Path) -> None:
    texts = [
        row["caption"] for row in load(shared / "data/coco_val2017_mini/captions_val2017_full.json")["annotations"]
    ]
    for file in ("mscoco_test", "flickr30k_test"):
        texts += [text for row in load(shared / f"data/coco_karpathy/{file}.json") for text in row["captions"]]
    unique = [re.sub(r"[\r\n\x0b\x0c\x85]", " ", text) for text in dict.fromkeys(texts)]
    assert len(unique) > 50_000
    found = {text: (tokenize(text), java) for text, java in zip(unique, javas(unique, tmp_path), strict=True)}
    assert {text: pair for text, pair in found.items() if pair[0] != pair[1]} == {}


@needs_java
def test_awkward_strings_are_the_originals(tmp_path: Path) -> None:
    texts = [*awkward(8000, seed=7), *RECORDED]
    found = {text: (tokenize(text), java) for text, java in zip(texts, javas(texts, tmp_path), strict=True)}
    assert {text: pair for text, pair in found.items() if pair[0] != pair[1]} == {}


@needs_java
@pytest.mark.slow
def test_periods_after_every_word_are_the_originals(shared: Path, tmp_path: Path) -> None:
    """Which words are abbreviations, which of them with a capital only, and which words begin a sentence."""
    rows = load(shared / "data/coco_val2017_mini/captions_val2017_full.json")["annotations"]
    words = {word for row in rows for word in re.findall("[a-z]{2,}", row["caption"].lower())}
    words |= {a + b for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdefghijklmnopqrstuvwxyz"}
    texts = [f"x {word}. y" for word in sorted(words)]
    for capital in (word.capitalize() for word in sorted(words)):
        texts += [f"x {capital}. y", f"b. {capital} y", f"{capital}. 5"]
    found = {text: (tokenize(text), java) for text, java in zip(texts, javas(texts, tmp_path), strict=True)}
    assert {text: pair for text, pair in found.items() if pair[0] != pair[1]} == {}


def test_word_by_word_is_the_whole_caption() -> None:
    """The cache of words is used only where no rule looks across a blank."""
    texts = [*awkward(4000, seed=8), *RECORDED]
    assert [tokenize(text) for text in texts] == [list(ptb._lex(text)) for text in texts]
    assert any(ptb.ACROSS.search(text) for text in texts)
    assert tokenize("a man on a\nhorse") == tokenize("a man on a horse")
