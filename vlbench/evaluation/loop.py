"""One evaluation loop for all tasks: decode -> transfer -> encode (once per image) -> predict -> write, then score."""

from __future__ import annotations

import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..capability import Awaited, Batch, Pass, Prediction, capability_of, owners
from ..disk.storage import canonical
from ..errors import RunFailed, UserError
from ..images.pipeline import ImageStore, on_device
from ..images.view import View
from ..machine.device import empty_cache, pinned
from ..model import Model
from ..nn.precision import plain_float32
from ..task import Sample, Task
from .perturbation import perturbation_of
from .plan import batch_plan
from .predictions import Line, Predictions

MAX_ERRORS = 100  # failing samples after which the data set is taken to be broken, not some of its samples
# Images failing one after another, each alone, after which the program is taken to be wrong: with a batch of 256 that
# is known after some 16 attempts, instead of the 500 that it takes to halve it down to every sample.
MAX_STREAK = 8
AHEAD = 2  # batches that are decoded before the device asks for them


@dataclass(frozen=True)
class Decoded:
    """images: every distinct image of a batch, or why it does not decode. together: all of them in one tensor, in that
    order and ready to be sent, where they have one size and all decode."""

    images: Mapping[Path, Tensor | View | OSError]
    together: Tensor | None = None

    def of(self, paths: Sequence[Path]) -> Sequence[Tensor | View] | Tensor:
        """Those images, which decode."""
        if self.together is not None and paths == list(self.images):
            return self.together
        return [one for path in paths if not isinstance(one := self.images[path], OSError)]

    def shows(self, sample: Sample) -> bool:
        """Whether all images of the sample decode."""
        return not any(isinstance(self.images[path], OSError) for path in sample.images)


Launched = Sequence[Any] | Exception


@dataclass(frozen=True)
class Begun:
    """A batch that the device has been given. good: those of its samples whose images decode; part: those that the
    device has; answers: their predictions, which may be on their way, or why there are none."""

    samples: Sequence[Sample]
    good: Sequence[Sample]
    part: Sequence[Sample]
    answers: Launched


class Evaluator:
    """Evaluates one model on one split. `phases` holds the seconds spent in each phase.

    A sample that raises (an image that does not decode) becomes status=error and never a wrong answer. After an
    out-of-memory error at any time the batch is halved and the smaller size kept, in runs that resume this one too;
    `backed_off` says so.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        store: ImageStore,
        *,
        settings: Mapping[str, Any],
        batch_size: int,
        precision: Literal["fp32", "bf16"] = "fp32",
        progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    ) -> None:
        self.model, self.task, self.settings = model, task, dict(settings)
        self.perturbation = perturbation_of(settings)
        self.store = store.changed(self.perturbation.image) if self.perturbation.images else store
        self.batch_size, self.precision, self.progress = batch_size, precision, progress
        self.phases: dict[str, float] = defaultdict(float)
        self.errors = 0
        self._pass = Pass("", lambda model, states, batch: [])
        self._options: Mapping[str, Any] = self.settings
        self._fits: int | None = None
        self._limit: Callable[[int], None] = lambda size: None
        self._streak: set[tuple[Path, ...]] = set()

    @property
    def backed_off(self) -> bool:
        """Whether batches are smaller than planned: scores may then differ by 1e-5."""
        return self._fits is not None

    def run(self, samples: Sequence[Sample], predictions: Predictions) -> list[Line]:
        """Predict what `predictions` lacks, score all of it; returns all lines in the order of `samples`."""
        lines = self.answered(samples, predictions)
        with self._phase("score"):
            lines = self._scored(samples, lines)
        return predictions.finish(lines)

    def answered(self, samples: Sequence[Sample], predictions: Predictions) -> list[Line]:
        """The lines without their scores. The model is given the samples as perturb= says; answers are scored against
        the samples as they are."""
        return capability_of(self.task.capability).evaluate(self, self.perturbation.samples(samples), predictions)

    def predict(
        self, one: Pass, samples: Sequence[Sample], lines: Predictions, options: Mapping[str, Any]
    ) -> list[Line]:
        """One pass over every sample that `lines` lacks; all lines in the order of `samples`, without scores. A worker
        takes every size-th batch of the plan."""
        world = lines.world
        mine = batch_plan(samples, self.batch_size)[world.rank :: world.size]
        todo = [b for b in mine if any(s.id not in lines.lines for s in b)]
        total = sum(map(len, mine))
        done = total - sum(map(len, todo))
        plain_float32()
        self.model.net.eval()
        self._pass, self._options = one, options
        self._fits, self._limit = lines.fits, lines.limit
        for batch, decoded in self._in_turn(todo):
            lines_of_batch = self._finish(batch, decoded)
            with self._phase("write"):
                lines.add(lines_of_batch)
            done += len(batch.samples)
            self.progress(done, total, f"{self.errors} errors" if self.errors else "")
        return lines.gather(samples)

    def _in_turn(self, plan: Sequence[list[Sample]]) -> Iterator[tuple[Begun, Decoded]]:
        """The batches, begun. One whose results are on their way from a device comes after the next was begun, so that
        the device has work while the host waits for them."""
        waiting: list[tuple[Begun, Decoded]] = []
        for samples, decoded in self._prefetched(plan):
            begun = self._begin(samples, decoded)
            yield from waiting
            late = isinstance(begun.answers, Awaited) and self.model.device.type != "cpu"
            waiting = [(begun, decoded)] if late else []
            if not late:
                yield begun, decoded
        yield from waiting

    def _scored(self, samples: Sequence[Sample], lines: Sequence[Line]) -> list[Line]:
        """The lines with their scores. A score that cannot be had (a label map of another size), or JSON cannot say
        (NaN, a tensor), is an error of its sample."""
        good = [i for i, line in enumerate(lines) if line["status"] == "ok"]
        scored = list(lines)
        if not good or not self.settings.get("labelled", True):
            return scored
        scores = self._scores([samples[i] for i in good], [lines[i]["prediction"] for i in good])
        if len(scores) != len(good):
            name = type(self.task).__name__
            raise RunFailed(f"{name}.scores gave {len(scores)} scores for {len(good)} samples: a mistake in the task.")
        for i, score in zip(good, scores, strict=True):
            try:
                if isinstance(score, Exception):
                    raise score
                canonical(score)
                scored[i] = {**lines[i], "score": score}
            except Exception as error:
                scored[i] = self._error(samples[i], _without_frames(error))
        return scored

    def _scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Sequence[Any]:
        """A score a sample, or why it has none, where the task scores each by itself."""
        if type(self.task).scores is not Task.scores:
            return self.task.scores(samples, predictions)
        return [self._score(s, p) for s, p in zip(samples, predictions, strict=True)]

    def _score(self, sample: Sample, prediction: Prediction) -> Any:
        try:
            return self.task.score(sample, prediction)
        except NotImplementedError:
            raise
        except Exception as error:
            return error

    def _prefetched(self, plan: Sequence[list[Sample]]) -> Iterator[tuple[list[Sample], Decoded]]:
        """Batches with their decoded images; the next ones are decoded, put together and pinned while this one runs."""
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as ahead:
            waiting: deque[Future[Decoded]] = deque()
            for index, batch in enumerate(plan):
                while len(waiting) <= AHEAD and index + len(waiting) < len(plan):
                    waiting.append(ahead.submit(self._decode, plan[index + len(waiting)]))
                with self._phase("decode"):
                    images = waiting.popleft().result()
                yield batch, images

    def _decode(self, batch: Sequence[Sample]) -> Decoded:
        """Every distinct image of the batch, or why it does not decode."""
        paths = list(dict.fromkeys(p for s in batch for p in s.images))
        images = dict(zip(paths, self.store.try_load(paths), strict=True))
        good = [one for one in images.values() if isinstance(one, Tensor)]
        together = self.store.spec.resize != "keep" and len(good) == len(images) and len({o.shape for o in good}) == 1
        return Decoded(images, pinned(torch.stack(good), self.model.device) if together else None)

    def _begin(self, samples: Sequence[Sample], decoded: Decoded) -> Begun:
        """Give the device the batch, or the part of it that fits into memory."""
        good = [s for s in samples if decoded.shows(s)]
        part = good[: self._fits or len(good)]
        return Begun(samples, good, part, self._launch(part, decoded) if good else [])

    def _finish(self, batch: Begun, decoded: Decoded) -> list[Line]:
        """The lines of all of the batch, those of images that do not decode last."""
        lines = self._predict(batch.good, decoded, (batch.part, batch.answers))
        for sample in batch.samples:
            failed = [e for p in sample.images if isinstance(e := decoded.images[p], OSError)]
            if failed:
                lines.append(self._error(sample, failed[0]))
        return lines

    def _predict(
        self, samples: Sequence[Sample], images: Decoded, begun: tuple[Sequence[Sample], Launched] | None = None
    ) -> list[Line]:
        """Predict in parts that fit into memory; a part that raises is halved until the sample at fault is alone.
        begun: the first part, where it was given to the device already."""
        lines: list[Line] = []
        while len(lines) < len(samples):
            rest = samples[len(lines) :]
            part, launched = begun or (rest[: self._fits or len(rest)], None)
            outcome = self._lines(part, self._launch(part, images) if launched is None else launched)
            begun = launched = None
            if isinstance(outcome, list):
                self._streak.clear()
                lines += outcome
            elif _out_of_memory(outcome):
                self._back_off(len(part))
            elif len(part) == 1:
                lines.append(self._blame(part[0], outcome))
            else:
                half = len(part) // 2
                lines += self._predict(part[:half], images) + self._predict(part[half:], images)
        return lines

    def _launch(self, samples: Sequence[Sample], images: Decoded) -> Launched:
        """The samples' predictions, which may be on their way still, or why there are none. An error is returned and
        not handled here: while it is handled, its traceback keeps the failed batch's tensors, and the next attempt
        would run out of memory by them."""
        try:
            return self._forward(samples, images)
        except (UserError, RunFailed):
            raise
        except Exception as error:
            return _without_frames(error)

    def _lines(self, samples: Sequence[Sample], answers: Launched) -> list[Line] | Exception:
        """The samples' lines, or why not."""
        if isinstance(answers, Exception):
            return answers
        try:
            with self._phase("predict"):
                answers = list(answers)
            if len(answers) == len(samples):
                return [self._line(s, p) for s, p in zip(samples, answers, strict=True)]
        except (UserError, RunFailed):
            raise
        except Exception as error:
            return _without_frames(error)
        name = f"{self.model.card.name}.{self._pass.name}"
        raise RunFailed(f"{name} gave {len(answers)} predictions for {len(samples)} samples: a mistake in the model.")

    def _line(self, sample: Sample, prediction: Any) -> Line:
        line = {"id": sample.id, "prediction": self._pass.written(prediction), "score": None, "status": "ok"}
        canonical(line)  # what JSON cannot say (NaN, a tensor) fails here, where its sample is known
        return line

    def _back_off(self, size: int) -> None:
        if size == 1:
            raise RunFailed("one sample does not fit into memory: use a smaller model or precision=bf16.")
        self._fits = size // 2
        self._limit(self._fits)
        empty_cache(self.model.device)

    def _forward(self, samples: Sequence[Sample], decoded: Decoded) -> Sequence[Any]:
        model, device = self.model, self.model.device
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"),
        ):
            with self._phase("transfer"):
                paths = {p: i for i, p in enumerate(dict.fromkeys(p for s in samples for p in s.images))}
                owner = owners([[paths[p] for p in s.images] for s in samples], torch.device("cpu"))
                batch = Batch(
                    samples,
                    self._images(decoded.of(list(paths)), device),
                    owner.to(device) if isinstance(owner, Tensor) else owner,
                    self._options,
                    [self.store.sizes[p] for p in paths],
                    host_owner=owner if isinstance(owner, Tensor) else None,
                )
            with self._phase("encode"):
                states = model.encode(batch.images)
            with self._phase("predict"):
                return self._pass.predict(model, states, batch)

    def _images(self, images: Sequence[Any] | Tensor, device: torch.device) -> Any:
        """Batch.images; of a blind evaluation all of them of the mean colour, which is 0 when it is normalised."""
        moved = on_device(images, self.store.spec, device, self.model.dtype)
        if not self.settings.get("blind"):
            return moved
        if not isinstance(moved, list):
            return torch.zeros_like(moved)
        return [image.blank() if isinstance(image, View) else torch.zeros_like(image) for image in moved]

    def _blame(self, sample: Sample, cause: Exception) -> Line:
        """The line of a sample that raised alone. Where nothing but that happens, it is not the samples' fault."""
        self._streak.add(sample.images)
        if len(self._streak) >= MAX_STREAK:
            raise RunFailed(
                f"{self.model.card.name} fails on every sample it is given (last: {sample.id}): {_told(cause)}"
            ) from cause
        return self._error(sample, cause)

    def _error(self, sample: Sample, cause: Exception) -> Line:
        self.errors += 1
        if self.errors >= MAX_ERRORS:
            raise RunFailed(f"{self.errors} samples failed, the last one ({sample.id}) with: {_told(cause)}") from cause
        return {"id": sample.id, "prediction": None, "score": None, "status": "error", "error": _told(cause)}

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] += time.perf_counter() - start


def _out_of_memory(error: Exception) -> bool:
    """torch's own error, and the plain ones that the host's allocator, cuBLAS and cuDNN raise instead."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and any(
        text in message for text in ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    )


def _without_frames(error: Exception) -> Exception:
    """The error without the frames of its traceback and causes, which hold tensors; `where` notes the last one."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    error.add_note(where)
    chain: list[BaseException] = [error]
    for link in chain:
        link.__traceback__ = None
        chain += [e for e in (link.__cause__, link.__context__) if e is not None and e not in chain]
    return error


def _told(error: Exception) -> str:
    """One line: the sentence of an image that does not decode, otherwise the error's type, text and place."""
    text = (str(error).strip() or "no text").splitlines()[0][:300]
    if isinstance(error, OSError):
        return text
    where = getattr(error, "__notes__", [""])[-1]
    return f"{type(error).__name__}: {text}" + (f" ({where})" if where else "")
