"""Flickr30K retrieval: which caption belongs to which photograph (Young et al., TACL 2014;
shannon.cs.illinois.edu/DenotationGraph).

Karpathy's splits: 1,000 test images with 5,000 captions. The metric is the mean of recall at 1, 5 and 10 in both
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


class Flickr30KRetrievalOptions(RetrievalOptions):
    """Options of `task=flickr30k_retrieval`."""

    k_test: int = Field(128, ge=0, description=CANDIDATES)


@task(
    "flickr30k_retrieval",
    title="Flickr30K image-text retrieval",
    capability="match",
    metric="r_mean",
    version=1,
    data="flickr30k",
    training={
        "upop": {
            "train": 145_000, "epochs": {0.5: 12, 0.75: 18}, "lr": 1e-5, "interval": 50, "l1": [6.4e-3, 2e-4],
            "loss": "momentum",
        },
    },
)  # fmt: skip
class Flickr30KRetrieval(Retrieval):
    """`root` holds the annotations and the image folders that _karpathy.py names."""

    Options: ClassVar[type[TaskOptions]] = Flickr30KRetrievalOptions
    dataset: ClassVar[Dataset] = "flickr30k"
    mini: ClassVar[Mapping[str, Any]] = {"k_test": 32}  # of 600 images

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.karpathy import FLICKR30K_WORLD

        return FLICKR30K_WORLD
