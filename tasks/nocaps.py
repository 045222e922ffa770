"""nocaps: captions of photographs whose objects COCO's captions never name (Agrawal et al., ICCV 2019,
arXiv 1812.08658; nocaps.org).

The 4,500 validation images with ten captions each, by domain: the objects of in-domain images are COCO's, those of
out-of-domain ones are not. A domain's CIDEr is that of its images evaluated by themselves. nocaps has no training
captions: train and select are COCO's, by Karpathy's splits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

from pydantic import Field

from vlbench.errors import UserError
from vlbench.task import Role, Sample, Score, Task, TaskOptions, task

from . import _caption_metrics
from ._files import IMAGE_SUFFIXES, inside, read_json, refuse, whole_number
from ._karpathy import coco_captions, entries, missing
from ._ptb import ptb_tokenize

if TYPE_CHECKING:
    from vlbench.mini.world import World

FILE = "nocaps_val_4500_captions.json"
FOLDERS = ("images", "val", "validation", "images/val", "images/validation")  # where the images lie
DOMAINS = {"in-domain": "in", "near-domain": "near", "out-domain": "out"}
TITLES = {
    **_caption_metrics.TITLES,
    **{
        f"{metric}/{short}": f"{_caption_metrics.TITLES[metric]} {domain}"
        for metric in ("cider", "spice")
        for domain, short in DOMAINS.items()
    },
}
SPICE_LENGTHS = (13, 19)  # of _caption_metrics' lists, those that end with SPICE


class Picture(NamedTuple):
    """One image of the annotations: its file's name, and the short name of its domain."""

    name: str
    domain: str


class NocapsOptions(TaskOptions):
    """Options of `task=nocaps`."""

    beams: int = Field(5, ge=1, description="width of the beam search")
    max_length: int = Field(30, ge=1, description="tokens of a caption at most, the prompt's included")
    min_length: int = Field(8, ge=0, description="tokens of a caption at least, the prompt's included")
    prompt: str = Field("a photo of ", description="words the model goes on from; they are no part of the caption")


@task("nocaps", title="nocaps, novel object captioning", capability="caption", metric="cider", version=1)
class Nocaps(Task):
    """`root` holds nocaps_val_4500_captions.json (or has it in annotations/) and the images in one of FOLDERS; for
    training COCO's captions and images, too, as tasks/coco_caption.py has them, in coco/ or beside."""

    Options: ClassVar[type[TaskOptions]] = NocapsOptions
    mini: ClassVar[Mapping[str, Any]] = {"min_length": 5, "prompt": "a picture of "}  # words the mini models know
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = dict.fromkeys(
        (
            *("cider", "cider/in", "cider/near", "cider/out", "spice", "spice/in", "spice/near", "spice/out"),
            *("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "meteor"),
        ),
        "higher",
    )
    titles: ClassVar[Mapping[str, str]] = TITLES
    bounds: ClassVar[tuple[float, float]] = (0.0, 1000.0)  # CIDEr is ten times a cosine
    options: NocapsOptions

    def __init__(self, root: Path, options: TaskOptions) -> None:
        super().__init__(root, options)
        self._failed: dict[str, str] = {}  # metric -> why it failed when it was tried

    @classmethod
    def roles(cls) -> dict[Role, str]:
        return {"train": "train", "select": "select", "report": "val"}

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.nocaps import WORLD

        return WORLD

    def missing(self, split: str) -> list[str]:
        if split != "val":
            return missing(self._coco, "coco", _karpathys(split))
        lacking = [] if self._file.is_file() else [f"{self._file} should hold the captions."]
        if self._folder is None:
            lacking.append(f"{self.root / FOLDERS[0]} should hold the images of nocaps.")
        return lacking

    def samples(self, split: str) -> list[Sample]:
        """In training a sample is a caption of COCO, its cluster the image; else an image, its target all captions."""
        if split == "train":
            return [
                Sample(f"caption-{i}", (e.image,), target=text, cluster=e.image_id)
                for e in entries(self._coco, "coco", "train")
                for i, text in zip(e.caption_ids, e.captions, strict=True)
            ]
        if split == "select":
            images = entries(self._coco, "coco", _karpathys(split), references=True)
            return [Sample(f"coco-{e.image_id}", (e.image,), target=e.captions) for e in images]
        captions, pictures = coco_captions(self._file), _pictures(self._file)
        refuse(pictures.keys() - captions.keys(), f"{self._file} has images without a caption")
        refuse(captions.keys() - pictures.keys(), f"{self._file} has captions of images that its list 'images' lacks")
        folder = self._folder or self.root / FOLDERS[0]
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        refuse((i for i, one in pictures.items() if one.name not in there), f"{folder} lacks images")
        return [
            Sample(i, (folder / one.name,), target=[text for _, text in captions[i]]) for i, one in pictures.items()
        ]

    def settings(self, split: str) -> dict[str, Any]:
        options = self.options
        lengths = {"max_length": options.max_length, "min_length": options.min_length}
        return {"beams": options.beams, **lengths, "prompt": options.prompt}

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]]) -> list[Score]:
        """The numbers of _caption_metrics.measure, CIDEr first, and after them the CIDEr within the image's domain."""
        said = [str(prediction["caption"]) for prediction in predictions]
        scored, self._failed = _caption_metrics.measure([sample.target for sample in samples], said)
        within = [0.0] * len(samples)
        for rows in self._by_domain(samples).values():
            own = [[" ".join(ptb_tokenize(text)) for text in samples[i].target] for i in rows]
            words = [" ".join(ptb_tokenize(said[i])) for i in rows]
            for i, value in zip(rows, _caption_metrics.cider(own, words), strict=True):
                within[i] = value
        return [[*numbers, value] for numbers, value in zip(scored, within, strict=True)]

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        numbers = [one[:-1] for one in cast(Sequence[list[float]], scores)]
        metrics = _caption_metrics.aggregate(numbers)
        for domain, rows in self._by_domain(samples).items():
            metrics[f"cider/{domain}"] = 100 * fmean(cast(list[float], scores[i])[-1] for i in rows)
            if len(numbers[0]) in SPICE_LENGTHS:
                metrics[f"spice/{domain}"] = 100 * fmean(numbers[i][-1] for i in rows)
        return {metric: metrics[metric] for metric in self.metrics if metric in metrics}

    def unmeasured(self) -> dict[str, str]:
        reasons = {**_caption_metrics.unmeasured(), **self._failed}
        if "spice" in reasons:
            reasons.update({f"spice/{domain}": reasons["spice"] for domain in DOMAINS.values()})
        return reasons

    def groups(self, samples: Sequence[Sample]) -> dict[str, str]:
        pictures = _pictures(self._file) if self._file.is_file() else {}
        return {sample.id: pictures[sample.id].domain for sample in samples if sample.id in pictures}

    def _by_domain(self, samples: Sequence[Sample]) -> dict[str, list[int]]:
        """Domain -> rows of the samples that belong to it."""
        groups = self.groups(samples)
        domains: defaultdict[str, list[int]] = defaultdict(list)
        for row, sample in enumerate(samples):
            if sample.id in groups:
                domains[groups[sample.id]].append(row)
        return domains

    @property
    def _file(self) -> Path:
        nested = self.root / "annotations" / FILE
        return nested if nested.is_file() else self.root / FILE

    @property
    def _folder(self) -> Path | None:
        """The first of FOLDERS that has images."""
        for name in FOLDERS:
            folder = self.root / name
            if folder.is_dir() and any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir()):
                return folder
        return None

    @property
    def _coco(self) -> Path:
        return self.root / "coco" if (self.root / "coco").is_dir() else self.root


def _karpathys(split: str) -> str:
    return "val" if split == "select" else split


def _pictures(path: Path) -> dict[str, Picture]:
    """Image id -> picture, in the file's order."""
    content = read_json(path)
    rows = content.get("images") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path} is not nocaps's file: it has no list 'images'.")
    pictures: dict[str, Picture] = {}
    for number, row in enumerate(rows):
        try:
            image_id, name, domain = (
                str(whole_number(row["id"])),
                inside(row["file_name"], path).name,
                DOMAINS[row["domain"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: entry {number} of 'images' is not valid: {error!r}.") from None
        if image_id in pictures:
            raise UserError(f"{path} has image ids twice: {image_id}.")
        pictures[image_id] = Picture(name, domain)
    return pictures
