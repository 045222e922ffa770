"""Calibration on other data than the task's own: another task's train split, or a file of captions.

Whatever the source, its samples become samples of the cell's own task, because calibration runs the task's own loss:
only that reaches every tower the task uses. Images with a caption can become
- `caption`: the caption is the target;
- `match`: the caption is the image's text;
- `answer`: the first half of the caption's words stands for the question, the rest for the answer. So BLIP-2's
  published training (arXiv 2301.12597, prefix language modelling) and ECoFLaP's and RESSA's calibration of its T5 feed
  captions (CC3M, COCO, Visual Genome) to an encoder and a decoder. A fixed question would show a question encoder one
  text 128 times.
Nothing can become `judge` (two images and a statement that is true or not), `classify` or `segment`: a caption says no
truth value, class or map. Samples of the same capability are taken as they are.
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
from ..pruning.options import SampledOptions
from ..task import Sample, Task
from .caption_files import read_captions
from .contents import content_digest, learnt_digest
from .roots import mini_world

if TYPE_CHECKING:
    from .spec import Spec


def open_sources(spec: Spec, task: Task, open_task: Callable[[Spec], Task]) -> dict[str, Source]:
    """Link -> its calibration data, where its options name them. open_task: finds the data of a cell's task. Raises
    UserError for what is neither a task nor a file, and where data are missing or of no use to this task."""
    sources: dict[str, Source] = {}
    tasks = table("tasks").entries
    for link in spec.links:
        text = link.calibration
        if text in tasks:
            sources[link.entry.name] = _task_source(spec, task, text, open_task)
        elif text:
            if not Path(text).expanduser().is_file():
                hint = did_you_mean(text, tasks)
                raise UserError(f"calibration={text} is neither a task nor a file of captions. {hint}")
            assert isinstance(link.options, SampledOptions)
            sources[link.entry.name] = _file_source(Path(text).expanduser(), link.options.calibration_images, task)
    return sources


def refuse_too_few(spec: Spec, task: Task, sources: Mapping[str, Source]) -> None:
    """Raise UserError where a link asks for more calibration samples than its data show images."""
    for link in spec.links:
        if isinstance(link.options, SampledOptions):
            source = sources.get(link.entry.name)
            train = "" if source else task.split_for("train")
            name = f"calibration={source.text}" if source else f"the split {train} of {task.name}"
            refuse_few(source.samples if source else task.samples(train), link.options.calibration_samples, name)


def _task_source(spec: Spec, task: Task, name: str, open_task: Callable[[Spec], Task]) -> Source:
    """The train split of another task, in its own data folder and with its default options."""
    entry = table("tasks").get(name)
    cls: type[Task] = entry.load()
    mini = spec.words.suite == "mini"
    options = cls.Options.model_validate(dict(cls.mini) if mini else {})
    _refuse_other(cls.capability, task, f"calibration={name}")
    other = open_task(replace(spec, task=entry, task_class=cls, task_options=options, split=cls.split_for("train")))

    def read() -> list[Sample]:
        samples = other.samples(other.split_for("train"))
        shown = adapted(samples, other.capability, task, f"calibration={other.name}")
        refuse_shown(shown, task, f"calibration={other.name}")
        return shown

    return Source(name, read, digest([name, mini_world(entry).digest]) if mini else None, content_digest)


def _file_source(file: Path, images: str, task: Task) -> Source:
    """A file of captions, for `task`. images: the folder of its images, the file's own where it is left out."""

    def read() -> list[Sample]:
        folder = Path(images).expanduser() if images else file.parent
        shown = adapted(read_captions(file, folder), "caption", task, f"calibration={file}")
        refuse_shown(shown, task, f"calibration={file}")
        return shown

    _refuse_other("caption", task, f"calibration={file}")
    return Source(str(file), read, content=content_digest)


def adapted(samples: Sequence[Sample], capability: str, task: Task, word: str) -> list[Sample]:
    """Samples of one capability as training samples of the task's. Raises UserError where there is no way."""
    _refuse_other(capability, task, word)
    if capability == task.capability:
        return list(samples)
    pairs = [(s, s.texts[0] if capability == "match" else str(s.target)) for s in samples]
    return [_FROM_CAPTION[task.capability](sample, text) for sample, text in pairs]


def _answer(sample: Sample, caption: str) -> Sample:
    words = caption.split()
    half = (len(words) + 1) // 2
    return replace(sample, text=" ".join(words[:half]), target={" ".join(words[half:]): 1.0}, texts=())


_FROM_CAPTION: dict[str, Callable[[Sample, str], Sample]] = {
    "caption": lambda sample, text: replace(sample, target=text, texts=()),
    "match": lambda sample, text: replace(sample, target=sample.cluster, texts=(text,)),
    "answer": _answer,
}
_CAPTIONED = ("caption", "match")  # capabilities whose training samples are an image with a caption


def _refuse_other(capability: str, task: Task, word: str) -> None:
    if capability != task.capability and not (capability in _CAPTIONED and task.capability in _FROM_CAPTION):
        raise UserError(
            f"{word} has samples to {capability}, and task={task.name} needs some to {task.capability}: only images "
            f"with captions can become others, for tasks to {', '.join(_FROM_CAPTION)}. Leave calibration= out."
        )


def refuse_shown(samples: Sequence[Sample], task: Task, word: str) -> None:
    """Raise UserError where samples have ids, or show images, of the task's report split: the file itself, or one of
    the same bytes under any name. (A picture that was stored anew, as other bytes, is not found.)"""
    from ..task import refuse_report_ids

    refuse_report_ids(task, samples)
    learnt_digest(task, samples, word)
