"""A cell: what is asked, resolved against the data and weights on this machine, and its identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..calibration.source import Source
from ..disk.storage import digest
from ..errors import UserError
from ..images.folder import differences, folder_image, image_of
from ..images.spec import ImageSpec
from ..plugins.table import table
from ..plugins.workspace import named_roots
from ..records.naming import cell_id
from ..task import Sample, Task, digest_samples
from .contents import content_digest, learnt_digest, silent
from .roots import BuildProgress, mini_world, open_task
from .sources import open_learnt, open_sources
from .spec import LinkSpec, Spec

# Bumped only when a number can change: new values never mix with old ones, and old results stay valid otherwise.
NUMERICS_VERSION = 1
# Added where precision=bf16 meets weights stored in bfloat16: since 0.2.0 they are held as they are stored, and trained
# in float32 below 10^9 parameters, where they were float32 throughout.
BF16_HELD = 1
# What the dense cell shares with the cells that are compared with it: computed once for both.
SHARED = ("samples", "settings", "split_digest", "train_digest", "weights_digest")


@dataclass(frozen=True)
class Cell:
    """One (suite, task, model, method chain with every option, seed) with its task opened. digesting: told how many of
    the files that its identity depends on were read, the first time that they are."""

    spec: Spec
    task: Task
    split: str
    weights: Path
    sources: Mapping[str, Source] = field(default_factory=dict)  # link -> what it is calibrated on instead of train
    learnt: Source | None = None  # what links learn from instead of the task's own train split
    digesting: BuildProgress = field(default=silent, compare=False, repr=False)

    @cached_property
    def samples(self) -> list[Sample]:
        """What is evaluated, in the split's order."""
        samples = self.task.samples(self.split)
        limit = self.spec.words.limit
        return samples[:limit] if limit else samples

    @cached_property
    def split_digest(self) -> str:
        """Digest of what is evaluated, images and label maps with it, and of the settings; of the mini world, whose
        files are compared with what was built, of what they follow from."""
        if self._world is not None:
            return digest([self._world, self.split, self.spec.words.limit, self.spec.task_options.recorded()])
        return digest([digest_samples(self.samples, self.settings), content_digest(self.samples, self.digesting)])

    @property
    def _world(self) -> str | None:
        """The pinned digest of the mini world, where nothing but it is read: to find a finished cell again, 70,000
        questions need not be parsed, which takes seconds."""
        if self.spec.words.suite != "mini" or any(isinstance(value, Path) for _, value in self.spec.task_options):
            return None
        return mini_world(self.spec.task).digest

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Evaluation settings: what the capability gets as options."""
        settings = {**self.task.settings(self.split), "labelled": self.task.labelled(self.split)}
        options = self.spec.task_options
        if options.perturb:
            settings |= {"perturb": options.perturb, "perturb_seed": options.perturb_seed}
        return {**settings, "blind": True} if options.blind else settings

    @property
    def evaluation(self) -> dict[str, Any]:
        """How it is evaluated, for the record: rows that differ here are not compared. Paths are left out: their
        content is in the split's digest."""
        options = self.spec.task_options
        given = {k: v for k, v in options.recorded().items() if not isinstance(getattr(options, k), Path)}
        preprocessing = {"preprocessing": self.own_preprocessing} if self.own_preprocessing else {}
        return {**given, "precision": self.spec.words.precision, "batch_size": self.batch_size, **preprocessing}

    @cached_property
    def image(self) -> ImageSpec:
        """Preprocessing: as the folder of the weights says, and the card where it does not, or the user says so."""
        card = image_of(self.spec.model.facts["image"])
        return card if self.spec.words.preprocessing == "card" else folder_image(card, self.weights)

    @property
    def own_preprocessing(self) -> str:
        """In words what the folder says otherwise than the card, where that is taken."""
        return differences(self.image, image_of(self.spec.model.facts["image"]))

    @cached_property
    def weights_digest(self) -> str:
        from ..tensors.locate import checkpoint_digest

        return checkpoint_digest(self.weights)

    @cached_property
    def numerics(self) -> int:
        """The version of how numbers come about, which is higher for those cells alone in which they changed."""
        if self.spec.words.precision != "bf16":
            return NUMERICS_VERSION
        from ..tensors.reading import stores  # brings torch

        return NUMERICS_VERSION + (BF16_HELD if stores(self.weights, "bf16") else 0)

    @property
    def learns(self) -> bool:
        """Whether a link reads the train split."""
        return self.spec.learns

    @property
    def seed(self) -> int | None:
        """None where no link draws random numbers: seeds of such a chain are one cell."""
        return self.spec.words.seed if self.spec.uses_seed else None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Content, never names: what must be equal for a number to be reused."""
        words, spec = self.spec.words, self.spec
        return {
            "numerics": self.numerics,
            "suite": words.suite,
            "task": [spec.task.name, self.task.version, spec.task.digest()],
            "split": [self.split, self.split_digest],
            "train": self.train_digest if self.learns else None,
            "weights": self.weights_digest,
            "family": spec.model.digest(),
            "preprocessing": spec.model.facts["image"],
            "chain": [self._link_identity(link) for link in spec.links],
            "seed": self.seed,
            "label": words.label,
            "evaluation": self.evaluation,
            **({"capability": capability} if (capability := self._capability_digest) else {}),
        }

    def options_of(self, link: LinkSpec) -> dict[str, Any]:
        """The options of a link, as records have them."""
        return recorded_options(link, self.sources.get(link.entry.name), self.learnt)

    def _link_identity(self, link: LinkSpec) -> list[Any]:
        """Name, version and options; of files, model folders and data that options name, the content."""
        from ..disk.digests import file_digest

        options, source = self.options_of(link), self.sources.get(link.entry.name)
        if source is not None:
            options["calibration"] = source.digest
        if self.learnt is not None and link.learns:
            options["train"] = self.learnt.digest
        for name, value in link.facts.paths.items():
            if not Path(value).exists():
                raise UserError(f"{link.entry.name}.{name}={value} does not exist.")
            options[name] = file_digest(Path(value))
        return [link.entry.name, link.version, options]

    @property
    def _capability_digest(self) -> str | None:
        """Of a capability outside the package, in a file of its own or another's."""
        return table("capabilities").get(self.task.capability).digest()

    def shared_identity(self) -> dict[str, Any]:
        """Of the identity what cells have in common whose first links look at the same dense model and the same data:
        all but the chain, of which the digest of the calibration data is left."""
        _, _, options = self.identity["chain"][0]
        rest = {name: value for name, value in self.identity.items() if name != "chain"}
        return {**rest, "calibration": options.get("calibration")}

    @cached_property
    def train_digest(self) -> str:
        """Digest of what the chain may learn from, which must not be what is reported: refused here, before anything
        is written, because the identity is the first thing that a run asks for."""
        if self.learnt is not None:
            return digest([self.learnt.digest, self.learnt.taught, self._learnt_digest()])
        return self._learnt_digest(self.task.split_for("train"))

    def _learnt_digest(self, *splits: str) -> str:
        """Of these splits of the task, and of the one that is chosen on where it is there."""
        if self._world is not None:
            return self._world
        from ..task import refuse_report_ids

        select = self.task.roles().get("select")
        splits = (*splits, *([select] if select and not self.task.missing(select) else []))
        samples = [s for split in splits for s in self.task.samples(split)]
        refuse_report_ids(self.task, samples)
        shown = learnt_digest(self.task, samples, f"the split {' or '.join(splits)}", self.digesting)
        return digest([digest_samples(samples), shown])

    @property
    def batch_size(self) -> int:
        """Samples a batch in evaluation."""
        return self.spec.words.batch_size or (256 if self.spec.words.suite == "mini" else 64)

    @cached_property
    def id(self) -> str:
        """Readable and unique: names for people, twelve hex digits of the identity for the machine."""
        spec = self.spec
        parts = (spec.words.suite, spec.task.name, spec.model.name, spec.method, spec.target)
        return cell_id(parts, self.seed, self.identity)

    def dense(self) -> Cell:
        """The same cell with the model unchanged: the baseline."""
        entry = table("methods").get("dense")
        method = entry.load()
        given = {**self.spec.of_data, "method": entry.name}
        links = (LinkSpec.of(entry, method, method.Options()),)
        spec = replace(self.spec, links=links, recipe="default", given=given)
        baseline = replace(self, spec=spec, sources={}, learnt=None)
        vars(baseline).update({name: vars(self)[name] for name in SHARED if name in vars(self)})
        return baseline

    @property
    def is_dense(self) -> bool:
        return [link.entry.name for link in self.spec.links] == ["dense"]


def recorded_options(link: LinkSpec, source: Source | None, learnt: Source | None = None) -> dict[str, Any]:
    """A link's options as records have them: of other data that it looks at, or learns from, the name alone."""
    words = dict(link.facts.recorded)
    if source is not None:
        words["calibration"] = source.name
        words.pop("calibration_images", None)
    return {**words, "train": learnt.name} if learnt is not None and link.learns else words


def open_cell(spec: Spec, progress: BuildProgress | None = None, digesting: BuildProgress = silent) -> Cell:
    """Find data and weights. progress: of the mini world, which is built; digesting: of the files that are read for
    the cell's identity. Raises UserError saying what goes where when something is missing."""
    mini = spec.words.suite == "mini"
    weights = _find_weights(spec) if mini else None  # before the world is built, which takes a while
    task = open_task(spec, progress)  # before weights are fetched from the hub
    sources = open_sources(spec, task, lambda other: open_task(other, progress))
    learnt = open_learnt(spec, task, lambda other: open_task(other, progress))
    return Cell(spec, task, spec.split, weights or _find_weights(spec), sources, learnt, digesting)


def identified(cell: Cell) -> Cell:
    """The cell, with all that its identity is made of read."""
    _ = cell.id
    return cell


def _find_weights(spec: Spec) -> Path:
    from ..tensors.locate import locate

    checkpoint = spec.words.checkpoint or spec.model.facts["checkpoint"]
    weights = locate(checkpoint, spec.model.facts.get("revision", "main"), named_roots())
    _refuse_damaged(weights)
    return weights


def _refuse_damaged(weights: Path) -> None:
    """Raise UserError for a truncated weights file now, before anything is written. Reads headers only."""
    from safetensors import SafetensorError, safe_open

    for file in [weights] if weights.is_file() else sorted(weights.glob("*.safetensors")):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="np"):
                    pass
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} cannot be read as weights ({error}): it is damaged or truncated.") from None
