"""ImageNet-1k: which of 1000 classes a photograph shows (Russakovsky et al., arXiv 1409.0575; image-net.org).

A class goes by its WordNet id (wnid), the name of its folder. The metrics are top-1 and top-5, in percent.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from vlbench.errors import UserError, did_you_mean
from vlbench.options import later
from vlbench.task import Role, Sample, Score, Task, TaskOptions, held_out, task

from ._files import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from vlbench.mini.world import World

SELECT_PERCENT = 2  # of the training images: 25 a class
SOLUTION = "LOC_val_solution.csv"  # Kaggle: "ImageId,PredictionString", the latter "wnid x y x y wnid ..."
WNID = re.compile(r"n\d{8}")
SHOWN = 5  # names that an error gives


class ImageNetOptions(TaskOptions):
    """Options of `task=imagenet`."""

    classes: Literal["named", "index"] = later(
        "named",
        description="what a class folder's name is. named: the name that the model has for the class (a WordNet id); "
        "index: the number of an ImageNet-1k class, from 0 in the order of their ids",
    )


@task(
    "imagenet",
    title="ImageNet-1k classification",
    capability="classify",
    metric="top1",
    version=1,
    training={
        "upop": {
            "train": 1_281_167, "batch": 4096, "epochs": {0.5: 60}, "finetune_epochs": 300, "lr": 8e-4, "min_lr": 1e-5,
            "interval": {0.1: 1600, 0.2: 1000, 0.3: 800, 0.4: 800, 0.5: 800}, "decayed": "timm",
        },
    },
)  # fmt: skip
class ImageNet(Task):
    """`root` holds train/ and val/, each with a folder a class. val/ may also be flat, as Kaggle has it, with
    LOC_val_solution.csv in `root` or beside the images."""

    Options: ClassVar[type[TaskOptions]] = ImageNetOptions
    options: ImageNetOptions
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {"top1": "higher", "top5": "higher"}
    titles: ClassVar[Mapping[str, str]] = {"top1": "top-1", "top5": "top-5"}

    @classmethod
    def roles(cls) -> dict[Role, str]:
        return {"train": "train", "select": "select", "report": "val"}

    @classmethod
    def report_splits(cls) -> tuple[str, ...]:
        return ("val", "select")

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.imagenet import WORLD

        return WORLD

    def missing(self, split: str) -> list[str]:
        folder = self._folder(split)
        if not folder.is_dir():
            return [f"{folder} should hold the images, in a folder for each class, named by its WordNet id."]
        if _class_folders(folder):
            return []
        need = f"{folder} has no class folders: its images should be in folders named by WordNet id"
        if split != "val":
            return [f"{need}."]
        return [] if self._solution(folder) else [f"{need}, or {self.root} should hold Kaggle's {SOLUTION}."]

    def samples(self, split: str) -> list[Sample]:
        """Sorted by id, which is wnid/filename in either layout."""
        folder = self._folder(split)
        if lacking := self.missing(split):
            raise UserError(" ".join(lacking))
        if wnids := _class_folders(folder):
            listed = _sorted_into_classes(folder, wnids)
            if self.options.classes == "index":
                listed = iter(sorted(_by_index(folder, listed)))
        else:
            listed = iter(_flat(folder, self._solution(folder)))
        samples = [Sample(f"{wnid}/{path.name}", (path,), target=wnid) for wnid, path in listed]
        if split == "val":
            return samples
        return [sample for sample in samples if held_out(sample.id, SELECT_PERCENT) is (split == "select")]

    def remarks(self, split: str) -> list[str]:
        """Files that are not read, and class folders that are named otherwise than WordNet names classes."""
        folder = self._folder(split)
        if self.missing(split) or not (names := _class_folders(folder)):
            return []
        unread = [f"{name}/{file}" for name in names for file in _unread(folder / name)]
        notes = [f"{len(unread)} files of {folder} are no images by their names and are not read: {_some(unread)}"]
        odd = [name for name in names if not WNID.fullmatch(name)] if self.options.classes == "named" else []
        doubt = (
            f"{len(odd)} of the {len(names)} class folders of {folder} are not named by WordNet ids ({_some(odd)}): "
            "only a model whose classes have these names can be evaluated (classes=index reads numbers of ImageNet-1k)"
        )
        return [*(notes if unread else ()), *([doubt] if odd else ())]

    def score(self, sample: Sample, prediction: Mapping[str, Any]) -> Score:
        """[top-1, top-5], each 0 or 1."""
        best: Sequence[str] = prediction["top5"]
        return [float(sample.target in best[:1]), float(sample.target in best[:5])]

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        top1, top5 = zip(*cast(Sequence[list[float]], scores), strict=True)
        return {"top1": 100 * fmean(top1), "top5": 100 * fmean(top5)}

    def _folder(self, split: str) -> Path:
        if split not in self.roles().values():
            raise UserError(f"imagenet has no split {split!r}. {did_you_mean(split, self.roles().values())}")
        return self.root / ("val" if split == "val" else "train")

    def _solution(self, folder: Path) -> Path | None:
        return next((place / SOLUTION for place in (self.root, folder) if (place / SOLUTION).is_file()), None)


def _class_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[str]:
    """Sorted names of the image files. No file is asked for its type: train has 1.28 million."""
    # An archive made on a Mac has a "._NAME.JPEG" beside each image.
    return sorted(n for n in _names(folder) if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith("."))


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _unread(folder: Path) -> list[str]:
    """What lies in a class folder and is no image by its name."""
    return sorted(n for n in _names(folder) if not n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith("."))


def _sorted_into_classes(folder: Path, wnids: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(wnid, image) of one folder a class."""
    loose = _images(folder)
    if loose:
        raise UserError(f"{folder} has {len(loose)} images beside its class folders: {_some(loose)}.")
    empty = []
    for wnid in wnids:
        names = _images(folder / wnid)
        if not names:
            empty.append(wnid)
        yield from ((wnid, folder / wnid / name) for name in names)
    if empty:
        raise UserError(f"{len(empty)} class folders of {folder} have no image: {_some(empty)}.")


def _by_index(folder: Path, listed: Iterator[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    """(wnid, image) of folders that are named by the numbers of ImageNet-1k's classes."""
    # Imported late: it brings torch, and this file is read to list the metrics as well.
    from timm.data import ImageNetInfo

    wnids: list[str] = ImageNetInfo().label_names()
    for name, path in listed:
        if not (name.isascii() and name.isdecimal() and int(name) < len(wnids)):
            raise UserError(f"classes=index: the folder {name} of {folder} is no number from 0 to {len(wnids) - 1}.")
        yield wnids[int(name)], path


def _flat(folder: Path, solution: Path | None) -> list[tuple[str, Path]]:
    """(wnid, image) of a flat folder, in the order of the folder layout."""
    assert solution is not None
    wnids = _read_solution(solution)
    images = {Path(name).stem: name for name in _images(folder)}
    unknown, absent = sorted(images.keys() - wnids.keys()), sorted(wnids.keys() - images.keys())
    if unknown:
        raise UserError(f"{solution} has no class for {len(unknown)} images of {folder}: {_some(unknown)}.")
    if absent:
        raise UserError(f"{folder} lacks {len(absent)} images of {solution}: {_some(absent)}.")
    return sorted((wnids[stem], folder / name) for stem, name in images.items())


def _read_solution(path: Path) -> dict[str, str]:
    """Image name without suffix -> wnid."""
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
        except (KeyError, AttributeError, IndexError):
            raise UserError(f"{path} should have ImageId and PredictionString in every row.") from None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
