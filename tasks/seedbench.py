"""SEED-Bench, the 14,233 questions about single images (Li et al., CVPR 2024, arXiv 2307.16125)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from vlbench.errors import UserError
from vlbench.task import task

from . import _choice
from ._asked import directions, located, unique
from ._choice_table import Choice, ChoiceTable, Rule
from ._files import inside, read_json

RELEASE, IMAGES = "SEED-Bench.json", "SEED-Bench-image"


@task("seedbench", title="SEED-Bench, images", capability="answer", metric="accuracy", version=1, chance=25.0)
class SeedBench(ChoiceTable):
    """`root` holds SEEDBench_IMG.tsv (VLMEvalKit's); or the release: SEED-Bench.json, of which the questions about
    images are read, and the images of CC3M in SEED-Bench-image/."""

    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {"test": ("SEEDBench_IMG.tsv",)}
    splits: ClassVar[tuple[str, ...]] = ("test",)
    rules: ClassVar[Mapping[str, Rule]] = {"lmms": _choice.first_character, "vlmevalkit": _choice.vlmevalkit}
    kinds: ClassVar[tuple[str, ...]] = (
        "Scene Understanding", "Instance Identity", "Instance Attributes", "Instance Location", "Instances Counting",
        "Spatial Relation", "Instance Interaction", "Visual Reasoning", "Text Understanding",
    )  # fmt: skip
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = directions("accuracy", kinds)

    def missing(self, split: str) -> list[str]:
        if not self._is_release(split):
            return super().missing(split)
        folder = located(self.root, IMAGES, "images")
        return [] if folder.is_dir() else [f"{folder} should hold the images of {RELEASE}."]

    def rows(self, split: str) -> Mapping[str, Choice]:
        return unique(self._released(), str(self.root / RELEASE)) if self._is_release(split) else super().rows(split)

    def _is_release(self, split: str) -> bool:
        """Whether the release is read: it is there, and no table is."""
        packed = self.table(split)
        return (self.root / RELEASE).is_file() and not packed.sources and not packed.index.is_file()

    def _released(self) -> Iterator[tuple[str, Choice]]:
        """(id, row) of the questions about images: those about videos are another benchmark."""
        path, folder = self.root / RELEASE, located(self.root, IMAGES, "images")
        content = read_json(path)
        try:
            names = {number: str(name) for name, number in content["question_type"].items()}
            for row in content["questions"]:
                if row["data_type"] == "image":
                    fields: dict[str, Any] = {**row, "category": names[row["question_type_id"]]}
                    fields["images"] = (folder / inside(str(row["data_id"]), path),)
                    number = self.number({"question_id": row["question_id"]}, str(path))
                    yield number, self.choice(fields, str(path))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not SEED-Bench's file of questions: {error!r}.") from None
