"""Image-text retrieval on Karpathy's splits: what COCO and Flickr30K have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vlbench.options import later
from vlbench.task import Role, Sample, Score, Task, TaskOptions

from . import _recall
from ._karpathy import Dataset, entries, missing

CANDIDATES = "candidates of each query that a model re-ranks, where it can; 0: none"


class RetrievalOptions(TaskOptions):
    """Options of the retrieval tasks."""

    k_test: int = Field(ge=0, description=CANDIDATES)
    captions_per_image: int | None = Field(
        None, ge=1, description="texts of each image that are evaluated, the first ones (left out: all; CLIP takes 5)"
    )
    ties: Literal["pessimistic", "original"] = later(
        "pessimistic",
        description="candidates of the right one's score: pessimistic: all stand before it, so that a tie is never "
        "luck; original: in the order that BLIP's itm_eval gives them, a reversed argsort, in which those that were "
        "not re-ranked all have one score",
    )


class Retrieval(Task):
    """Evaluated is a sample an image, whose `texts` are all its captions; the gallery is all texts of the split. In
    training a sample is a caption, its cluster the image. Two images with the same words keep a text each: the other
    image's counts as wrong, as in the originals."""

    dataset: ClassVar[Dataset]
    corpus: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = _recall.METRICS
    titles: ClassVar[Mapping[str, str]] = _recall.TITLES
    options: RetrievalOptions

    @classmethod
    def roles(cls) -> dict[Role, str]:
        return {"train": "train", "select": "val", "report": "test"}

    @classmethod
    def report_splits(cls) -> tuple[str, ...]:
        return ("test", "val")

    def missing(self, split: str) -> list[str]:
        return missing(self.root, self.dataset, split)

    def samples(self, split: str) -> list[Sample]:
        """Their targets are the image's id: samples of equal target are no negatives of one another."""
        images = entries(self.root, self.dataset, split)
        if split == "train":
            return [  # Karpathy numbers captions and images alike, and no id may be that of a report sample
                Sample(f"caption-{i}", (e.image,), target=e.image_id, cluster=e.image_id, texts=(text,))
                for e in images
                for i, text in zip(e.caption_ids, e.captions, strict=True)
            ]
        most = self.options.captions_per_image
        return [Sample(e.image_id, (e.image,), target=e.image_id, texts=tuple(e.captions[:most])) for e in images]

    def settings(self, split: str) -> dict[str, Any]:
        ties = {"ties": self.options.ties} if self.options.ties != "pessimistic" else {}
        return {"k_test": self.options.k_test, **ties}

    def score(self, sample: Sample, prediction: Mapping[str, Any]) -> Score:
        """The eight statistics of _recall.hits."""
        return _recall.hits(prediction["text_rank"], prediction["image_ranks"])

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        return _recall.table(np.asarray(scores, dtype=np.float64).sum(axis=0))

    def corpus_metric(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return _recall.r_mean(sums)
