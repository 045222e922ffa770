"""DocVQA: questions about scanned pages (Mathew et al., WACV 2021, arXiv 2007.00398; rrc.cvc.uab.es, challenge 17).

The metric is ANLS (see _short.py). Pages want a high resolution: a model that sees 336 x 336 pixels answers next to
nothing, pruned or not. test has no public answers: a run on it writes the file that the server takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from vlbench.errors import UserError
from vlbench.task import Role, Sample, held_out, task

from . import _short
from ._asked import AskedOptions, directions, lacking, located, unique
from ._files import identifier_of, inside, read_json, text_of, texts_of, whole_number
from ._packed import Row, listed
from ._tabled import Tabled, cell, image_of

SELECT_PERCENT = 5  # of the training documents
UPLOAD = "docvqa_results.json"
RULES: Mapping[str, Callable[[str, Sequence[str]], float]] = {"official": _short.anls, "mmf": _short.anls_mmf}


class Question(NamedTuple):
    """One question about a page; answers: none where they are not public."""

    image: Path
    text: str
    answers: tuple[str, ...]
    document: str


class DocVQAOptions(AskedOptions):
    """Options of `task=docvqa`."""

    rule: Literal["official", "mmf"] = Field(
        "official", description="how distances are normalised: official by the texts as they are; mmf by stripped ones"
    )
    max_length: int = Field(32, ge=1, description="tokens of an answer at most")


@task("docvqa", title="DocVQA, ANLS", capability="answer", metric="anls", version=1)
class DocVQA(Tabled):
    """`root` holds {train,val,test}_v1.0.json (or *_v1.0_withQT.json) and the pages in documents/ (or, as the later
    release has them, in spdocvqa_images/). In place of them, for val and test: DocVQA_VAL.tsv and DocVQA_TEST.tsv
    (VLMEvalKit's), or lmms-eval's DocVQA/validation-*.parquet and test-*.parquet."""

    Options: ClassVar[type[AskedOptions]] = DocVQAOptions
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = directions("anls")
    titles: ClassVar[Mapping[str, str]] = {"anls": "ANLS"}
    splits: ClassVar[tuple[str, ...]] = ("val", "test", "select")
    learned: ClassVar[Mapping[Role, str]] = {"train": "train", "select": "select"}
    tables: ClassVar[Mapping[str, Sequence[str]]] = {
        "val": ("DocVQA_VAL.tsv", "DocVQA/validation-*.parquet"), "test": ("DocVQA_TEST.tsv", "DocVQA/test-*.parquet"),
    }  # fmt: skip
    options: DocVQAOptions

    def labelled(self, split: str) -> bool:
        return split != "test"

    def lacks(self, split: str) -> list[str]:
        return lacking({self._file(split): f"the questions of {split}", self._pages: "the pages"})

    def released(self, split: str) -> Mapping[str, Question]:
        path = self._file(split)
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            raise UserError(f"{path} is not a file of DocVQA: it has no list 'data'.")
        questions = unique((self._question(row, path, split) for row in content["data"]), str(path))
        if split not in ("train", "select"):
            return questions
        return {i: q for i, q in questions.items() if held_out(q.document, SELECT_PERCENT) is (split == "select")}

    def _question(self, row: Any, path: Path, split: str) -> tuple[str, Question]:
        try:
            number, text, name = str(whole_number(row["questionId"])), text_of(row["question"]), text_of(row["image"])
            answers, name = texts_of(row.get("answers", [])), Path(name).name
            document = identifier_of(row.get("ucsf_document_id") or row["docId"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} has an entry that is no question: {error!r}.") from None
        inside(name, path)
        if self.labelled(split) and not answers:
            raise UserError(f"{path}: question {number} has no answers.")
        return number, Question(self._pages / name, text, answers, document)

    def from_table(self, row: Row, number: int, place: str) -> tuple[str, Question]:
        image = image_of(row, place)
        answers = tuple(str(answer) for answer in listed(row, "answers" if "answers" in row else "answer", place))
        document = str(row.get("ucsf_document_id", image.stem))
        text = cell(row, "question", place=place)
        return cell(row, "questionId", "index", place=place), Question(image, text, answers, document)

    def sample(self, number: str, row: Question) -> Sample:
        target = dict.fromkeys(row.answers, 1 / len(row.answers)) if row.answers else None
        return Sample(number, (row.image,), row.text, target, row.image.stem)

    def judged(self, row: Question, said: str) -> tuple[float, bool]:
        return RULES[self.options.rule](said, row.answers), bool(said.strip())

    def write_upload(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]], folder: Path) -> Path:
        pairs = zip(samples, predictions, strict=True)
        path = folder / UPLOAD
        path.write_text(json.dumps([{"questionId": int(s.id), "answer": p["answer"]} for s, p in pairs]))
        return path

    @property
    def _pages(self) -> Path:
        return located(self.root, "documents", "spdocvqa_images")

    def _file(self, split: str) -> Path:
        name = "train" if split == "select" else split
        return located(self.root, f"{name}_v1.0.json", f"{name}_v1.0_withQT.json")
