"""COCO retrieval: which caption belongs to which photograph (Lin et al., ECCV 2014, arXiv 1405.0312; cocodataset.org).

Karpathy's splits: 5,000 test images with 25,010 captions. The metric is the mean of recall at 1, 5 and 10 in both
directions (see _recall.py). k_test is BLIP's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from vlbench.task import TaskOptions, task

from ._karpathy import Dataset
from ._retrieval import CANDIDATES, Retrieval, RetrievalOptions

if TYPE_CHECKING:
    from vlbench.mini.world import World


class CocoRetrievalOptions(RetrievalOptions):
    """Options of `task=coco_retrieval`."""

    k_test: int = Field(256, ge=0, description=CANDIDATES)


@task(
    "coco_retrieval",
    title="COCO image-text retrieval",
    capability="match",
    metric="r_mean",
    version=1,
    data="coco",
    training={
        "upop": {
            "train": 566_747, "epochs": {0.5: 6, 0.75: 9}, "lr": 1e-5, "interval": 200, "l1": [6.4e-3, 2e-4],
            "loss": "momentum",
        },
    },
)  # fmt: skip
class CocoRetrieval(Retrieval):
    """`root` holds the annotations and the image folders that _karpathy.py names."""

    Options: ClassVar[type[TaskOptions]] = CocoRetrievalOptions
    dataset: ClassVar[Dataset] = "coco"
    mini: ClassVar[Mapping[str, Any]] = {"k_test": 32}  # of 1,000 images: 256 would take two minutes a cell

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.karpathy import COCO_WORLD

        return COCO_WORLD
