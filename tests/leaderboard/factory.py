"""Fake records, so that a leaderboard can be tested without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlbench.disk.storage import digest
from vlbench.records.naming import cell_id
from vlbench.records.record import Budget, Link, Parameters, Record, pack_clusters, pack_scores
from vlbench.records.statistics import interval, versus

SAMPLES, PER_IMAGE = 1500, 5
DENSE, PRUNABLE = 1_950_000, 1_500_000


def scores(accuracy: float, seed: int = 0, samples: int = SAMPLES) -> np.ndarray:
    """Zeros and ones; models of one seed agree on which samples are easy, as pruned and dense models do."""
    rng = np.random.default_rng(seed)
    easy = np.repeat(rng.random(samples // PER_IMAGE), PER_IMAGE)
    return ((0.5 * easy + 0.5 * rng.random(samples)) < accuracy).astype(np.float64)


def record(
    method: str = "dense",
    *,
    sparsity: float = 0.0,
    accuracy: float = 0.8,
    seed: int | None = None,
    pattern: str = "dense",
    trained: bool = False,
    options: dict[str, Any] | None = None,
    values: Sequence[float] | None = None,
    **changes: Any,
) -> Record:
    """A finished cell of suite mini, task vqav2. changes: any other field of Record."""
    dense = scores(0.8)
    mine = np.asarray(values) if values is not None else scores(accuracy, seed or 0)
    clusters = [str(i // PER_IMAGE) for i in range(len(mine))]
    chain = [Link(name=method, version="1", options={"sparsity": sparsity, **(options or {})})]
    removed = round(PRUNABLE * sparsity)
    result = interval(100 * mine, clusters)
    fields: dict[str, Any] = {
        "suite": "mini", "task": "vqav2", "task_version": 1, "split": "val", "split_digest": digest("val"),
        "samples": len(mine), "clusters": result.clusters, "model": "blip-mini",
        "weights_digest": digest("blip"),
        "method": method, "recipe": "mini", "chain": chain,
        "pattern": pattern, "trained": trained, "seed": seed,
        "sparsity_target": str(sparsity), "evaluation": {"precision": "fp32"},
        "parameters": Parameters(
            dense=DENSE, total=DENSE - (removed if pattern == "structured" else 0), nonzero=DENSE - removed,
            prunable=PRUNABLE, removed=removed, towers={"vision": sparsity},
        ),
        "macs": round(45_600_000 * (1 - (0.7 * sparsity if pattern == "structured" else 0))),
        "macs_dense": 45_600_000, "budget": Budget(steps=300, samples_seen=9600) if trained else Budget(),
        "metric": "accuracy", "metrics": {"accuracy": result.value}, "interval": result,
        "vs_dense": None if method == "dense" else versus(100 * mine, 100 * dense[: len(mine)], clusters),
        "complete": True, "flags": [],
        "provenance": {"torch": "2.8.0"}, "phases": {"encode": 1.5}, "scores": pack_scores(mine.tolist()),
        "sample_clusters": pack_clusters(clusters),
        **changes,
    }  # fmt: skip
    fields.setdefault("identity", identity_of(fields))
    parts = (fields["suite"], fields["task"], fields["model"], fields["method"], fields["sparsity_target"])
    fields.setdefault("cell", cell_id(parts, fields["seed"], fields["identity"]))
    return Record(**fields)


def identity_of(fields: dict[str, Any]) -> dict[str, Any]:
    """As a cell's: what must be equal for its number to be used again."""
    return {
        "suite": fields["suite"],
        "task": [fields["task"], fields["task_version"], None],
        "split": [fields["split"], fields["split_digest"]],
        "weights": fields["weights_digest"],
        "chain": [[link.name, link.version, link.options] for link in map(Link.model_validate, fields["chain"])],
        "seed": fields["seed"],
        "label": fields.get("label", ""),
        "evaluation": fields["evaluation"],
    }


def changed(one: Record, **changes: Any) -> Record:
    """A record of another cell, with the identity and the name that it has."""
    other = one.model_copy(update=changes)
    identity = identity_of(vars(other))
    parts = (other.suite, other.task, other.model, other.method, other.sparsity_target)
    return other.model_copy(update={"identity": identity, "cell": cell_id(parts, other.seed, identity)})


def board() -> list[Record]:
    """A board with all that a board can have: seeds, patterns, trained and untrained, options, flags."""
    structured = {"pattern": "structured", "trained": True}
    return [
        record(),
        *(record("magnitude", sparsity=s, accuracy=0.8 - s**2, pattern="unstructured") for s in (0.5, 0.75)),
        *(record("wanda", sparsity=0.5, accuracy=a, pattern="2:4", options={"calibration": n})
          for n, a in ((64, 0.77), (128, 0.78))),
        *(record("upop", sparsity=0.5, accuracy=0.75 + s / 200, seed=s, **structured) for s in (0, 1, 2)),
        record("uniform", sparsity=0.5, accuracy=0.62, **structured, flags=["batch-size-backed-off"]),
        record("finetune", accuracy=0.81, pattern="dense", trained=True, seed=0),
    ]  # fmt: skip
