"""TextVQA: questions that ask to read what stands in a photograph (Singh et al., CVPR 2019, arXiv 1904.08920;
textvqa.org).

The metric is the soft accuracy over ten answers (see _vqa_accuracy.py). LLaVA-1.5's published 58.2 was asked with the
words that Rosetta's OCR had read (ocr=true); later models are asked without. test has no public answers: a run on it
writes the file that EvalAI takes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from vlbench.errors import UserError
from vlbench.task import Role, Sample, held_out, task

from . import _vqa_accuracy
from ._asked import AskedOptions, directions, lacking, located, unique
from ._files import inside, read_json, refuse, text_of, texts_of, whole_number
from ._packed import Row, listed
from ._tabled import Tabled, cell, image_of

if TYPE_CHECKING:
    from vlbench.mini.world import World

SELECT_PERCENT = 5  # of the training images
VERSION = "TextVQA_0.5.1"
OCR = "TextVQA_Rosetta_OCR_v0.2"
UPLOAD = "textvqa_results.json"
RULES: Mapping[str, Callable[[str], str]] = {
    "official": _vqa_accuracy.normalise_tokens, "lmms": _vqa_accuracy.normalise_tokens,
    "vlmevalkit": _vqa_accuracy.normalise_repaired,
}  # fmt: skip


class Question(NamedTuple):
    """One question; answers: none where they are not public."""

    image: Path
    text: str
    answers: tuple[str, ...]


class TextVQAOptions(AskedOptions):
    """Options of `task=textvqa`."""

    rule: Literal["official", "lmms", "vlmevalkit"] = Field(
        "official",
        description="how answers are normalised: official is mmf's, as is lmms, which asks with a capital first "
        "letter and small ones behind; vlmevalkit keeps a period beside a digit",
    )
    ocr: bool = Field(False, description="ask with the words that Rosetta read, as LLaVA-1.5's published number was")


@task("textvqa", title="TextVQA, reading in photographs", capability="answer", metric="accuracy", version=1)
class TextVQA(Tabled):
    """`root` holds TextVQA_0.5.1_{train,val,test}.json, the images in train_images/ and test_images/, and, for
    ocr=true, TextVQA_Rosetta_OCR_v0.2_{train,val,test}.json. In place of them, for val: TextVQA_VAL.tsv (VLMEvalKit's),
    or lmms-eval's data/validation-*.parquet."""

    Options: ClassVar[type[AskedOptions]] = TextVQAOptions
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = directions("accuracy")
    splits: ClassVar[tuple[str, ...]] = ("val", "test", "select")
    learned: ClassVar[Mapping[Role, str]] = {"train": "train", "select": "select"}
    tables: ClassVar[Mapping[str, Sequence[str]]] = {"val": ("TextVQA_VAL.tsv", "data/validation-*.parquet")}
    options: TextVQAOptions

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.textvqa import WORLD

        return WORLD

    def labelled(self, split: str) -> bool:
        return split != "test"

    def lacks(self, split: str) -> list[str]:
        files = {self._file(VERSION, split): f"the questions of {split}", self._images(split): "the images"}
        words = {self._file(OCR, split): "the words that Rosetta read, or leave ocr=true out"}
        return lacking({**files, **(words if self.options.ocr else {})})

    def released(self, split: str) -> Mapping[str, Question]:
        path, images = self._file(VERSION, split), self._images(split)
        words = self._words(split) if self.options.ocr else None
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            raise UserError(f"{path} is not a file of TextVQA: it has no list 'data'.")
        questions = unique((self._question(row, path, images, words) for row in content["data"]), str(path))
        if split not in ("train", "select"):
            return questions
        return {i: q for i, q in questions.items() if held_out(q.image.stem, SELECT_PERCENT) is (split == "select")}

    def _question(
        self, row: Any, path: Path, images: Path, words: Mapping[str, list[str]] | None
    ) -> tuple[str, Question]:
        try:
            number, image, text = (
                str(whole_number(row["question_id"])),
                text_of(row["image_id"]),
                text_of(row["question"]),
            )
            answers = texts_of(row.get("answers", []))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} has an entry that is no question: {error!r}.") from None
        inside(image, path)
        if "test" not in path.name and not answers:
            raise UserError(f"{path}: question {number} has no answers.")
        if words is not None:
            refuse([] if image in words else [image], f"{self._file(OCR, 'val').name} lacks images")
        text = self._asked_as(text, None if words is None else words[image])
        return number, Question(images / f"{image}.jpg", text, answers)

    def from_table(self, row: Row, number: int, place: str) -> tuple[str, Question]:
        answers = tuple(str(answer) for answer in listed(row, "answers" if "answers" in row else "answer", place))
        if self.options.ocr and "ocr_tokens" not in row:
            raise UserError(f"{place} has no ocr_tokens, as lmms-eval's table has them: leave ocr=true out.")
        words = [str(word) for word in listed(row, "ocr_tokens", place)] if self.options.ocr else None
        text = self._asked_as(cell(row, "question", place=place), words)
        return cell(row, "question_id", "index", place=place), Question(image_of(row, place), text, answers)

    def _asked_as(self, text: str, words: Sequence[str] | None) -> str:
        """The question as the rule's evaluator writes it, with the words that were read, if any."""
        asked = text.capitalize() if self.options.rule == "lmms" else text
        return asked if words is None else f"{asked}\nReference OCR token: {', '.join(words)}"

    def sample(self, number: str, row: Question) -> Sample:
        target = {a: n / len(row.answers) for a, n in Counter(row.answers).items()} or None
        return Sample(number, (row.image,), row.text, target, row.image.stem)

    def judged(self, row: Question, said: str) -> tuple[float, bool]:
        return _vqa_accuracy.soft_accuracy(said, row.answers, RULES[self.options.rule]), bool(said.strip())

    def write_upload(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]], folder: Path) -> Path:
        pairs = zip(samples, predictions, strict=True)
        path = folder / UPLOAD
        path.write_text(json.dumps([{"question_id": int(s.id), "answer": p["answer"]} for s, p in pairs]))
        return path

    def _words(self, split: str) -> dict[str, list[str]]:
        path = self._file(OCR, split)
        content = read_json(path)
        try:
            return {text_of(row["image_id"]): list(texts_of(row["ocr_tokens"])) for row in content["data"]}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a file of OCR words: {error!r}.") from None

    def _file(self, kind: str, split: str) -> Path:
        return self.root / f"{kind}_{'train' if split == 'select' else split}.json"

    def _images(self, split: str) -> Path:
        return located(self.root, "test_images" if split == "test" else "train_images", "images")
