"""COCO captions: one sentence that describes a photograph (Chen et al., arXiv 1504.00325; cocodataset.org).

Karpathy's splits: 5,000 test images with five captions or more. The metrics are those of the official evaluation
(see _caption_metrics.py), times 100. METEOR needs Java, SPICE also CoreNLP's models: where these lack, a result says
so. Decoding is BLIP's (configs/caption_coco.yaml).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from vlbench.errors import UserError
from vlbench.task import Role, Sample, Score, Task, TaskOptions, task

from . import _caption_metrics
from ._files import inside, read_json, refuse, whole_number
from ._karpathy import coco_captions, entries, missing

if TYPE_CHECKING:
    from vlbench.mini.world import World

OWN = "test"  # the split that the user's own captions stand for


class CocoCaptionOptions(TaskOptions):
    """Options of `task=coco_caption`."""

    beams: int = Field(3, ge=1, description="width of the beam search")
    max_length: int = Field(20, ge=1, description="tokens of a caption at most, the prompt's included")
    min_length: int = Field(5, ge=0, description="tokens of a caption at least, the prompt's included")
    prompt: str = Field("a picture of ", description="words the model goes on from; they are no part of the caption")
    annotations: Path | None = Field(None, description="your own captions (official COCO format) in place of test's")
    images: Path | None = Field(None, description="folder of their images")


@task(
    "coco_caption",
    title="COCO image captioning",
    capability="caption",
    metric="cider",
    version=1,
    data="coco",
    training={
        "upop": {"train": 566_747, "epochs": {0.5: 5, 0.75: 8}, "lr": 1e-5, "interval": 100, "l1": [3.2e-2, 1e-3]},
    },
)
class CocoCaption(Task):
    """`root` holds Karpathy's or BLIP's annotations (or has them in annotations/) and the image folders train2014 and
    val2014 (or has them in images/)."""

    Options: ClassVar[type[TaskOptions]] = CocoCaptionOptions
    mini: ClassVar[Mapping[str, Any]] = {"max_length": 26}  # its captions have up to 16 words and 4 signs
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = dict.fromkeys(
        ("cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "meteor", "spice"), "higher"
    )
    titles: ClassVar[Mapping[str, str]] = _caption_metrics.TITLES
    bounds: ClassVar[tuple[float, float]] = (0.0, 1000.0)  # CIDEr is ten times a cosine
    options: CocoCaptionOptions

    def __init__(self, root: Path, options: TaskOptions) -> None:
        super().__init__(root, options)
        self._failed: dict[str, str] = {}  # metric -> why it failed when it was tried

    @classmethod
    def roles(cls) -> dict[Role, str]:
        return {"train": "train", "select": "val", "report": "test"}

    @classmethod
    def report_splits(cls) -> tuple[str, ...]:
        return ("test", "val")

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.karpathy import COCO_WORLD

        return COCO_WORLD

    def missing(self, split: str) -> list[str]:
        annotations, images = self._own(split)
        if annotations is None or images is None:
            return missing(self.root, "coco", split)
        lacking = [] if annotations.is_file() else [f"{annotations} should hold the captions (annotations=)."]
        return lacking if images.is_dir() else [*lacking, f"{images} should hold the images (images=)."]

    def samples(self, split: str) -> list[Sample]:
        """In training a sample is a caption, its cluster the image; else an image, its target all its captions."""
        annotations, images = self._own(split)
        if annotations is not None and images is not None:
            return _own_samples(annotations, images)
        if split == "train":
            return [  # Karpathy numbers captions and images alike, and no id may be that of a report sample
                Sample(f"caption-{i}", (e.image,), target=text, cluster=e.image_id)
                for e in entries(self.root, "coco", split)
                for i, text in zip(e.caption_ids, e.captions, strict=True)
            ]
        listed = entries(self.root, "coco", split, references=True)
        return [Sample(e.image_id, (e.image,), target=e.captions) for e in listed]

    def settings(self, split: str) -> dict[str, Any]:
        options = self.options
        lengths = {"max_length": options.max_length, "min_length": options.min_length}
        return {"beams": options.beams, **lengths, "prompt": options.prompt}

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]]) -> list[Score]:
        """The numbers of _caption_metrics.measure: CIDEr first, of which 100 x the mean is the primary metric."""
        said = [str(prediction["caption"]) for prediction in predictions]
        scored, self._failed = _caption_metrics.measure([sample.target for sample in samples], said)
        return cast(list[Score], scored)

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        return _caption_metrics.aggregate(cast(Sequence[list[float]], scores))

    def unmeasured(self) -> dict[str, str]:
        return {**_caption_metrics.unmeasured(), **self._failed}

    def _own(self, split: str) -> tuple[Path, Path] | tuple[None, None]:
        annotations, images = self.options.annotations, self.options.images
        if (annotations is None) != (images is None):
            raise UserError("Your own captions need both annotations=FILE and images=FOLDER: give the other one, too.")
        return (annotations, images) if annotations and images and split == OWN else (None, None)


def _own_samples(annotations: Path, folder: Path) -> list[Sample]:
    """One sample an image that has captions, in the order of the file's images."""
    captions = coco_captions(annotations)
    images = _image_names(annotations)
    refuse(captions.keys() - images.keys(), f"{annotations} has captions of images that its list 'images' lacks")
    shown = {image_id: folder / name for image_id, name in images.items() if image_id in captions}
    refuse((i for i, path in shown.items() if not path.is_file()), f"{folder} lacks images")
    return [Sample(i, (path,), target=[text for _, text in captions[i]]) for i, path in shown.items()]


def _image_names(annotations: Path) -> dict[str, Path]:
    """Image id -> file, as {"images": [{"id", "file_name"}]} states it."""
    content = read_json(annotations)
    rows = content.get("images")
    if not isinstance(rows, list):
        raise UserError(f"{annotations} is not a COCO captions file: it has no list 'images'.")
    files: dict[str, Path] = {}
    twice: set[str] = set()
    for number, row in enumerate(rows):
        try:
            image_id, name = str(whole_number(row["id"])), Path(inside(row["file_name"], annotations))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{annotations}: entry {number} of 'images' is not valid: {error!r}.") from None
        if image_id in files:
            twice.add(image_id)
        files[image_id] = name
    refuse(twice, f"{annotations} has image ids twice")
    return files
