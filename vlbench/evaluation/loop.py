"""One evaluation loop for all tasks: decode -> transfer -> encode (once per image) -> predict -> write, then score."""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..capability import Batch, Prediction, owners
from ..disk.storage import canonical
from ..errors import RunFailed, UserError
from ..images.pipeline import ImageStore, on_device
from ..images.view import View
from ..machine.device import empty_cache
from ..model import Model
from ..nn.precision import plain_float32
from ..task import Sample, Task
from .matching import PACKED, matched, pack
from .plan import batch_plan
from .predictions import Line, Predictions

MAX_ERRORS = 100  # failing samples after which the data set is taken to be broken, not some of its samples
# Images failing one after another, each alone, after which the program is taken to be wrong: with a batch of 256 that
# is known after some 16 attempts, instead of the 500 that it takes to halve it down to every sample.
MAX_STREAK = 8


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
        self.model, self.task, self.store, self.settings = model, task, store, dict(settings)
        self.batch_size, self.precision, self.progress = batch_size, precision, progress
        self.phases: dict[str, float] = defaultdict(float)
        self.errors = 0
        self._method = task.capability
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
        if self.task.capability == "match":
            lines = matched(self, samples, predictions)
        else:
            lines = self.predict(self.task.capability, samples, predictions, self.settings)
        with self._phase("score"):
            lines = self._scored(samples, lines)
        return predictions.finish(lines)

    def predict(
        self, method: str, samples: Sequence[Sample], predictions: Predictions, options: Mapping[str, Any]
    ) -> list[Line]:
        """One pass: the model's `method` over every sample that `predictions` lacks; all lines in the order of
        `samples`, without scores. A worker takes every size-th batch of the plan."""
        world = predictions.world
        mine = batch_plan(samples, self.batch_size)[world.rank :: world.size]
        todo = [b for b in mine if any(s.id not in predictions.lines for s in b)]
        total = sum(map(len, mine))
        done = total - sum(map(len, todo))
        plain_float32()
        self.model.net.eval()
        self._method, self._options = method, options
        self._fits, self._limit = predictions.fits, predictions.limit
        for batch, images in self._prefetched(todo):
            lines = self._batch(batch, images)
            with self._phase("write"):
                predictions.add(lines)
            done += len(batch)
            self.progress(done, total, f"{self.errors} errors" if self.errors else "")
        return predictions.gather(samples)

    def _scored(self, samples: Sequence[Sample], lines: Sequence[Line]) -> list[Line]:
        """The lines with their scores. A score that JSON cannot say (NaN, a tensor) is an error of its sample."""
        good = [i for i, line in enumerate(lines) if line["status"] == "ok"]
        scored = list(lines)
        if not good or not self.settings.get("labelled", True):
            return scored
        scores = self.task.scores([samples[i] for i in good], [lines[i]["prediction"] for i in good])
        if len(scores) != len(good):
            name = type(self.task).__name__
            raise RunFailed(f"{name}.scores gave {len(scores)} scores for {len(good)} samples: a mistake in the task.")
        for i, score in zip(good, scores, strict=True):
            try:
                canonical(score)
                scored[i] = {**lines[i], "score": score}
            except (TypeError, ValueError) as error:
                scored[i] = self._error(samples[i], _without_frames(error))
        return scored

    def _prefetched(self, plan: Sequence[list[Sample]]) -> Iterator[tuple[list[Sample], dict[Path, Tensor | OSError]]]:
        """Batches with their decoded images; the next batch is decoded while this one runs."""
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as ahead:
            waiting: Future[dict[Path, Tensor | OSError]] | None = None
            for index, batch in enumerate(plan):
                now = waiting or ahead.submit(self._decode, batch)
                waiting = ahead.submit(self._decode, plan[index + 1]) if index + 1 < len(plan) else None
                with self._phase("decode"):
                    images = now.result()
                yield batch, images

    def _decode(self, batch: Sequence[Sample]) -> dict[Path, Tensor | OSError]:
        """Every distinct image of the batch, or why it does not decode."""
        paths = list(dict.fromkeys(p for s in batch for p in s.images))
        return dict(zip(paths, self.store.try_load(paths), strict=True))

    def _batch(self, batch: Sequence[Sample], images: Mapping[Path, Tensor | OSError]) -> list[Line]:
        failed = {p: e for p, e in images.items() if isinstance(e, OSError)}
        good = [s for s in batch if not any(p in failed for p in s.images)]
        lines = self._predict(good, images) if good else []
        for sample in batch:
            cause = next((failed[p] for p in sample.images if p in failed), None)
            if cause is not None:
                lines.append(self._error(sample, cause))
        return lines

    def _predict(self, samples: Sequence[Sample], images: Mapping[Path, Any]) -> list[Line]:
        """Predict in parts that fit into memory; a part that raises is halved until the sample at fault is alone."""
        lines: list[Line] = []
        while len(lines) < len(samples):
            rest = samples[len(lines) :]
            part = rest[: self._fits or len(rest)]
            found = self._attempt(part, images)
            if isinstance(found, list):
                self._streak.clear()
                lines += found
            elif _out_of_memory(found):
                self._back_off(len(part))
            elif len(part) == 1:
                lines.append(self._blame(part[0], found))
            else:
                half = len(part) // 2
                lines += self._predict(part[:half], images) + self._predict(part[half:], images)
        return lines

    def _attempt(self, samples: Sequence[Sample], images: Mapping[Path, Any]) -> list[Line] | Exception:
        """The samples' lines, or why not. Returned and not handled here: while an exception is handled, its traceback
        keeps the failed batch's tensors, and the next attempt would run out of memory by them."""
        try:
            found = self._forward(samples, images)
            if len(found) == len(samples):
                return [self._line(s, p) for s, p in zip(samples, found, strict=True)]
        except (UserError, RunFailed):
            raise
        except Exception as error:
            return _without_frames(error)
        name = f"{self.model.card.name}.{self._method}"
        raise RunFailed(f"{name} gave {len(found)} predictions for {len(samples)} samples: a mistake in the model.")

    def _line(self, sample: Sample, prediction: Any) -> Line:
        if self._method in PACKED:
            prediction = pack(prediction)
        line = {"id": sample.id, "prediction": prediction, "score": None, "status": "ok"}
        canonical(line)  # what JSON cannot say (NaN, a tensor) fails here, where its sample is known
        return line

    def _back_off(self, size: int) -> None:
        if size == 1:
            raise RunFailed("one sample does not fit into memory: use a smaller model or precision=bf16.")
        self._fits = size // 2
        self._limit(self._fits)
        empty_cache(self.model.device)

    def _forward(self, samples: Sequence[Sample], images: Mapping[Path, Tensor]) -> list[Prediction]:
        model, device = self.model, self.model.device
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"),
        ):
            with self._phase("transfer"):
                paths = {p: i for i, p in enumerate(dict.fromkeys(p for s in samples for p in s.images))}
                batch = Batch(
                    samples,
                    self._images([images[p] for p in paths], device),
                    owners([[paths[p] for p in s.images] for s in samples], device),
                    self._options,
                    [self.store.sizes[p] for p in paths],
                )
            with self._phase("encode"):
                states = model.encode(batch.images)
            with self._phase("predict"):
                found: list[Prediction] = getattr(model, self._method)(states, batch)
                return found

    def _images(self, images: Sequence[Tensor], device: torch.device) -> Any:
        """Batch.images; of a blind evaluation all of them of the mean colour, which is 0 when it is normalised."""
        found = on_device(images, self.store.spec, device, self.model.dtype)
        if not self.settings.get("blind"):
            return found
        if not isinstance(found, list):
            return torch.zeros_like(found)
        return [image.blank() if isinstance(image, View) else torch.zeros_like(image) for image in found]

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
    told = str(error)
    return isinstance(error, RuntimeError) and any(
        text in told for text in ("can't allocate memory", "out of memory", "ALLOC_FAILED")
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
