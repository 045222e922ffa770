"""Calibration on other data than the task's own: another task's train split, or a file of captions.

Whatever the source, its samples become samples of the cell's own task, because calibration runs the task's own loss:
only that reaches every tower the task uses. Samples of the same capability are taken as they are. Of others, images
with a caption can become what the task's capability makes of a caption (`vlbench.capability.Captioned`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..calibration.source import Source, refuse_few
from ..disk.storage import digest
from ..errors import UserError, did_you_mean
from ..plugins.table import table
from ..task import Sample, Task
from .caption_files import read_captions
from .contents import content_digest, learnt_digest
from .roots import mini_world

if TYPE_CHECKING:
    from ..capability import Captioned
    from .spec import Spec


def open_sources(spec: Spec, task: Task, open_task: Callable[[Spec], Task]) -> dict[str, Source]:
    """Link -> its calibration data, where its options name them. open_task: finds the data of a cell's task. Raises
    UserError for what is neither a task nor a file, and where data are missing or of no use to this task."""
    sources: dict[str, Source] = {}
    tasks = table("tasks").entries
    for link in spec.links:
        text = link.calibration
        if text in tasks:
            sources[link.entry.name] = _task_source(spec, task, "calibration", text, open_task)
        elif text:
            if not Path(text).expanduser().is_file():
                hint = did_you_mean(text, tasks)
                raise UserError(f"calibration={text} is neither a task nor a file of captions. {hint}")
            assert link.facts.looks_at is not None
            sources[link.entry.name] = _file_source(Path(text).expanduser(), link.facts.looks_at.images, task)
    return sources


def open_learnt(spec: Spec, task: Task, open_task: Callable[[Spec], Task]) -> Source | None:
    """What train= names in the place of the task's train split, None where it names nothing."""
    return _task_source(spec, task, "train", spec.words.train, open_task) if spec.words.train else None


def refuse_too_few(spec: Spec, task: Task, sources: Mapping[str, Source], learnt: Source | None = None) -> None:
    """Raise UserError where a link asks for more calibration samples than its data show images, and where there is
    nothing to learn from."""
    if learnt is not None and not learnt.samples:
        raise UserError(f"train={learnt.text} has no samples, and this method needs some.")
    for link in spec.links:
        if link.facts.looks_at is not None:
            source = sources.get(link.entry.name)
            word = f"calibration={source.text}" if source else f"train={spec.words.train}"
            data = source or learnt
            train = "" if data else task.split_for("train")
            name = word if data else f"the split {train} of {task.name}"
            refuse_few(data.samples if data else task.samples(train), link.facts.looks_at.samples, name)


def _task_source(spec: Spec, task: Task, key: str, name: str, open_task: Callable[[Spec], Task]) -> Source:
    """The train split of another task, in its own data folder and with its default options. key: the word that names
    it. Where it is trained on, its questions are asked in its own words, which say what its answers look like."""
    word = f"{key}={name}"
    entry = table("tasks").get(name)
    cls: type[Task] = entry.load()
    mini = spec.words.suite == "mini"
    options = cls.Options.model_validate(dict(cls.mini) if mini else {})
    if cls.capability != task.capability:
        captions = _ways(cls.capability).read is not None
        _refuse_other(cls.capability, captions, task, word)
    other = open_task(replace(spec, task=entry, task_class=cls, task_options=options, split=cls.split_for("train")))

    def read() -> list[Sample]:
        samples = other.samples(other.split_for("train"))
        shown = adapted(samples, other.capability, task, word)
        refuse_shown(shown, task, word, same_ids=other.data == task.data)
        return shown

    taught = other.taught() if key == "train" and cls.capability == task.capability else None
    return Source(name, read, digest([name, mini_world(entry).digest]) if mini else None, content_digest, taught)


def _file_source(file: Path, images: str, task: Task) -> Source:
    """A file of captions, for `task`. images: the folder of its images, the file's own where it is left out."""

    def read() -> list[Sample]:
        folder = Path(images).expanduser() if images else file.parent
        shown = _captioned(read_captions(file, folder), _of_file, task)
        refuse_shown(shown, task, f"calibration={file}")
        return shown

    _refuse_other("caption an image", True, task, f"calibration={file}")
    return Source(str(file), read, content=content_digest)


def adapted(samples: Sequence[Sample], capability: str, task: Task, word: str) -> list[Sample]:
    """Samples of one capability as training samples of the task's. Raises UserError where there is no way."""
    if capability == task.capability:
        return list(samples)
    read = _ways(capability).read
    _refuse_other(capability, read is not None, task, word)
    assert read is not None
    return _captioned(samples, read, task)


def _captioned(samples: Sequence[Sample], read: Callable[[Sample], str], task: Task) -> list[Sample]:
    make = _ways(task.capability).make
    assert make is not None
    return [make(sample, read(sample)) for sample in samples]


def _ways(capability: str) -> Captioned:
    """From and to captions. Imported here, where other data than the task's are read: it brings torch."""
    from ..capability import capability_of

    return capability_of(capability).captioned


def _of_file(sample: Sample) -> str:
    """Files of captions are read as image and caption (caption_files.py)."""
    return str(sample.target)


def _refuse_other(what: str, captions: bool, task: Task, word: str) -> None:
    """Raise UserError where samples to do `what` cannot become the task's. captions: whether they hold captions."""
    if not captions or _ways(task.capability).make is None:
        able = [name for name in table("capabilities").entries if _ways(name).make is not None]
        raise UserError(
            f"{word} has samples to {what}, and task={task.name} needs some to {task.capability}: only images "
            f"with captions can become others, for tasks to {', '.join(able)}. Leave {word.partition('=')[0]}= out."
        )


def refuse_shown(samples: Sequence[Sample], task: Task, word: str, *, same_ids: bool = True) -> None:
    """Raise UserError where samples have ids, or show images, of the task's report split: the file itself, or one of
    the same bytes under any name. (A picture that was stored anew, as other bytes, is not found.) same_ids: False where
    equal ids say nothing, because the samples are of another data set."""
    from ..task import refuse_report_ids

    refuse_report_ids(task, samples, same_ids=same_ids)
    learnt_digest(task, samples, word)
