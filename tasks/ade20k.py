"""ADE20K: which of 150 classes each pixel shows (Zhou et al., CVPR 2017, arXiv 1608.05442; sceneparsing.csail.mit.edu).

The data are those of the scene parsing challenge, ADEChallengeData2016. The metrics, in percent, are mIoU, mAcc and
aAcc over all pixels of the split (see _miou.py), with 0 of the label maps ignored and class n - 1 for their n.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BeforeValidator, Field, model_validator

from vlbench.errors import UserError, did_you_mean
from vlbench.images.maps import LabelMap
from vlbench.task import Role, Sample, Score, Task, TaskOptions, held_out, task

from ._files import IMAGE_SUFFIXES, refuse
from ._miou import IGNORED, aacc, counts, macc, miou

if TYPE_CHECKING:
    from vlbench.mini.world import World

SELECT_PERCENT = 5  # of the training images
CHALLENGE = "ADEChallengeData2016"
CLASSES = 150
CLASS_LIST = "objectInfo150.txt"  # a header, then a row a class: "1<tab>0.1576<tab>11664<tab>1172<tab>wall"


def _split_words(value: Any) -> Any:
    """A list as one word: 0.5+0.75+1, or with commas, which in a sweep separate its cells."""
    return re.split("[+,]", value) if isinstance(value, str) else value


class ADE20KOptions(TaskOptions):
    """Options of `task=ade20k`: how the model goes over an image. Lengths are pixels of the resized image."""

    window: int | None = Field(None, ge=1, description="side of the sliding window (left out: the model card's)")
    stride: int | None = Field(None, ge=1, description="step of the sliding window (left out: the model card's)")
    scales: Annotated[list[Annotated[float, Field(gt=0, le=16)]], BeforeValidator(_split_words)] = Field(
        [1.0], min_length=1, description="sizes of the image that are averaged over, as in 0.5+0.75+1+1.25+1.5+1.75"
    )
    flip: bool = Field(False, description="average over the mirrored image too")

    @model_validator(mode="after")
    def _reach_every_pixel(self) -> Self:
        if self.window and self.stride and self.stride > self.window:
            raise ValueError(f"stride={self.stride} leaves gaps between windows of {self.window}: lower it")
        return self


@task(
    "ade20k",
    title="ADE20K semantic segmentation",
    capability="segment",
    metric="miou",
    version=1,
    training={
        # Each of the mini world's crops has 4,096 labelled pixels: a step of 128 crops takes 0.65 s of a core.
        "mini": {"batch_size": 48},
        "upop": {
            "train": 20_210, "batch": 64, "epochs": {0.1: 16}, "finetune_epochs": 64, "lr": 4e-3, "min_lr": 1e-5,
            "interval": {0.1: 500, 0.15: 400, 0.2: 300, 0.3: 200}, "optimiser": "sgd", "weight_decay": 0.0,
            "decay": "poly", "decayed": "matrices",  # Nesterov momentum 0.9
        },
    },
)  # fmt: skip
class ADE20K(Task):
    """`root` is ADEChallengeData2016 or the folder that holds it: images/ and annotations/, each with training/ and
    validation/. The number of classes is that of objectInfo150.txt, 150 where it is left out."""

    Options: ClassVar[type[TaskOptions]] = ADE20KOptions
    corpus: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {"miou": "higher", "macc": "higher", "aacc": "higher"}
    titles: ClassVar[Mapping[str, str]] = {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc"}
    options: ADE20KOptions

    @classmethod
    def roles(cls) -> dict[Role, str]:
        return {"train": "training", "select": "select", "report": "validation"}

    @classmethod
    def report_splits(cls) -> tuple[str, ...]:
        return ("validation", "select")

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.ade20k import WORLD

        return WORLD

    def missing(self, split: str) -> list[str]:
        images, labels = self._folders(split)
        wanted = ((images, "images"), (labels, "label maps (8-bit PNG, 0 to 150)"))
        return [f"{folder} should hold the {what} of {split}." for folder, what in wanted if not folder.is_dir()]

    def samples(self, split: str) -> list[Sample]:
        """Sorted by id, which is the name without its ending."""
        image_folder, label_folder = self._folders(split)
        images, labels = _listing(image_folder, IMAGE_SUFFIXES), _listing(label_folder, (".png",))
        refuse(images.keys() - labels.keys(), f"{label_folder} lacks the label maps of images")
        refuse(labels.keys() - images.keys(), f"{image_folder} lacks the images of label maps")
        if not images:
            raise UserError(f"{image_folder} holds no images.")
        _refuse_full_release(labels[min(labels)])
        return [
            Sample(name, (images[name],), target=LabelMap(labels[name], zero_ignored=True))
            for name in sorted(images)
            if split == "validation" or held_out(name, SELECT_PERCENT) is (split == "select")
        ]

    def settings(self, split: str) -> dict[str, Any]:
        return self.options.model_dump()

    @cached_property
    def classes(self) -> int:
        """How many classes there are."""
        path = self._base / CLASS_LIST
        return _count_classes(path) if path.is_file() else CLASSES

    def score(self, sample: Sample, prediction: Mapping[str, Any]) -> Score:
        """The counts of _miou.counts, three numbers a class."""
        # Imported late: it brings torch, and this file is read to list the metrics as well.
        from vlbench.images.maps import read_map, unpack_map

        said, label = unpack_map(prediction["map"]), read_map(sample.target)
        if said.shape != label.shape:
            sizes = " and ".join("{} x {}".format(*shape) for shape in (label.shape, said.shape))
            difference = f"{sample.target.path} and the prediction for {sample.images[0].name} are of {sizes} pixels"
            raise UserError(f"{difference} (height x width): a label map must be of its image's size.")
        return cast(list[float], counts(said, label, self.classes).tolist())

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        sums = np.asarray(scores, dtype=np.float64).sum(axis=0, keepdims=True)
        return {name: float(metric(sums)[0]) for name, metric in (("miou", miou), ("macc", macc), ("aacc", aacc))}

    def corpus_metric(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return miou(sums)

    @property
    def _base(self) -> Path:
        nested = self.root / CHALLENGE
        return nested if nested.is_dir() and not (self.root / "annotations").is_dir() else self.root

    def _folders(self, split: str) -> tuple[Path, Path]:
        """Images and label maps."""
        if split not in self.roles().values():
            raise UserError(f"ade20k has no split {split!r}. {did_you_mean(split, self.roles().values())}")
        folder = "validation" if split == "validation" else "training"
        return self._base / "images" / folder, self._base / "annotations" / folder


def _listing(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Name without its ending -> file."""
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read: {error.strerror}.") from None
    files: dict[str, Path] = {}
    for path in paths:
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            twin = files.setdefault(path.stem, path)
            if twin is not path:
                raise UserError(f"{folder} has {path.stem} twice: {twin.name} and {path.name}.")
    return files


def _refuse_full_release(label: Path) -> None:
    """Read the header of one label map. One that does not open is told by name where it is scored."""
    with contextlib.suppress(OSError), Image.open(label) as image:
        if image.mode in ("RGB", "RGBA"):
            problem = f"{label} is a colour picture, as in the full ADE20K release"
            raise UserError(f"{problem}: use the label maps of {CHALLENGE}, which hold a class number a pixel.")


def _count_classes(path: Path) -> int:
    try:
        rows = [line for line in path.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        numbers = [int(row.split()[0]) for row in rows]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    if not numbers or numbers != list(range(1, len(numbers) + 1)) or len(numbers) > IGNORED:
        raise UserError(f"{path} should have a header and then a row for each class, numbered 1 to at most {IGNORED}.")
    return len(numbers)
