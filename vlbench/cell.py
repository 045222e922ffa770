"""A cell: what is asked, resolved against the data and weights on this machine, and its identity."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import UserError
from .plugins import table, workspace
from .spec import LinkSpec, Spec
from .storage import digest
from .task import Sample, Task, digest_samples

# Bumped only when a number can change: new values never mix with old ones, and old results stay valid otherwise.
NUMERICS_VERSION = 1

BuildProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cell:
    """One (suite, task, model, method chain with every option, seed) with its task opened."""

    spec: Spec
    task: Task
    split: str
    weights: Path

    @cached_property
    def samples(self) -> list[Sample]:
        """What is evaluated, in the split's order."""
        found = self.task.samples(self.split)
        limit = self.spec.words.limit
        return found[:limit] if limit else found

    @cached_property
    def split_digest(self) -> str:
        return digest_samples(self.samples, self.settings)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Evaluation settings: what the capability gets as options."""
        return {**self.task.settings(self.split), "labelled": self.task.labelled(self.split)}

    @property
    def evaluation(self) -> dict[str, Any]:
        """How it is evaluated, for the record: rows that differ here are not compared. Paths are left out: their
        content is in the split's digest."""
        options = self.spec.task_options.model_dump()
        told = {k: v for k, v in options.items() if not isinstance(v, Path)}
        return {**told, "precision": self.spec.words.precision, "batch_size": self.batch_size}

    @cached_property
    def weights_digest(self) -> str:
        from .weights import file_digest

        return file_digest(self.weights)

    @property
    def learns(self) -> bool:
        """Whether a link reads the train split."""
        return any(link.entry.facts.get("uses_seed", False) for link in self.spec.links)

    @property
    def seed(self) -> int | None:
        """None where no link draws random numbers: seeds of such a chain are one cell."""
        return self.spec.words.seed if self.spec.uses_seed else None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Content, never names: what must be equal for a number to be reused."""
        words, spec = self.spec.words, self.spec
        train = self.task.roles()["train"]
        return {
            "numerics": NUMERICS_VERSION,
            "suite": words.suite,
            "task": [spec.task.name, self.task.version, spec.task.digest()],
            "split": [self.split, self.split_digest],
            "train": digest_samples(self.task.samples(train)) if self.learns else None,
            "weights": self.weights_digest,
            "family": spec.model.digest(),
            "preprocessing": spec.model.facts.get("image"),
            "chain": [_link_identity(link) for link in spec.links],
            "seed": self.seed,
            "precision": words.precision,
            "batch_size": self.batch_size,
        }

    @property
    def batch_size(self) -> int:
        """Samples a batch in evaluation."""
        return self.spec.words.batch_size or (256 if self.spec.words.suite == "mini" else 64)

    @cached_property
    def id(self) -> str:
        """Readable and unique: names for people, twelve hex digits of the identity for the machine."""
        spec = self.spec
        parts = [spec.words.suite, spec.task.name, spec.model.name, spec.method, spec.target]
        if self.seed is not None:
            parts.append(f"s{self.seed}")
        text = re.sub(r"[^\w.+-]", "_", "-".join(p.replace(":", "of") for p in parts if p))
        return f"{text}-{digest(self.identity)[:12]}"

    def dense(self) -> Cell:
        """The same cell with the model unchanged: the baseline."""
        entry = table("methods").get("dense")
        method = entry.load()
        spec = replace(self.spec, links=(LinkSpec(entry, method, method.Options()),), recipe="default")
        return replace(self, spec=spec)

    @property
    def is_dense(self) -> bool:
        return [link.entry.name for link in self.spec.links] == ["dense"]


def _link_identity(link: LinkSpec) -> list[Any]:
    return [link.entry.name, link.version, link.options.model_dump(mode="json")]


def open_cell(spec: Spec, progress: BuildProgress | None = None) -> Cell:
    """Find data and weights. Raises UserError saying what goes where when something is missing."""
    from .weights import locate

    space = workspace()
    weights = locate(
        spec.words.checkpoint or spec.model.facts["checkpoint"],
        spec.model.facts.get("revision", "main"),
        space.roots,
    )
    root = data_root(spec, progress)
    task: Task = spec.task_class(root, spec.task_options)
    split = spec.words.split or task.roles()["report"]
    if split not in task.report_splits():
        raise UserError(f"split={split} is none of {spec.task.name}: {', '.join(task.report_splits())}.")
    missing = task.missing(split)
    if missing:
        raise UserError("\n".join([f"{spec.task.name} lacks data in {root}:", *missing]))
    return Cell(spec, task, split, weights)


def data_root(spec: Spec, progress: BuildProgress | None = None) -> Path:
    """The task's data folder: the mini world's cache, or the root named in vlbench.toml or VLBENCH_DATA."""
    if spec.words.suite == "mini":
        from .data.mini import mini_root

        return mini_root(spec.task.name, progress)
    name = str(spec.task.facts.get("data") or spec.task.name)
    roots = workspace().roots
    if name in roots:
        return Path(roots[name])
    if os.environ.get("VLBENCH_DATA"):
        return Path(os.environ["VLBENCH_DATA"]).expanduser() / name
    raise UserError(
        f'where is the {name} data? Write its folder into vlbench.toml ([roots] {name} = "/path"), or set '
        f"VLBENCH_DATA to a folder that holds {name}/."
    )
