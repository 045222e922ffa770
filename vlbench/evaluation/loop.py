"""One evaluation loop for all tasks: decode -> transfer -> encode (once per image) -> predict -> write."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.images import ImageStore, normalise
from ..errors import RunFailed
from ..model import Batch, Model, Prediction
from ..task import Sample, Task
from .plan import batch_plan
from .predictions import Line, Predictions

MAX_ERRORS = 100  # failing samples after which the cause is taken to be the program, not the data


class Evaluator:
    """Evaluates one model on one split. `phases` holds the seconds spent in each phase.

    A sample that raises (an image that does not decode) becomes status=error and never a wrong answer. After an
    out-of-memory error at any time the batch is halved and the smaller size kept; `backed_off` says so.
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
        self.backed_off = False
        self.errors = 0

    def run(self, samples: Sequence[Sample], predictions: Predictions) -> list[Line]:
        """Predict and score what `predictions` lacks; returns all lines in the order of `samples`."""
        plan = batch_plan(samples, self.batch_size)
        todo = [b for b in plan if any(s.id not in predictions.lines for s in b)]
        done = len(samples) - sum(map(len, todo))
        self.model.net.eval()
        for batch, images in self._prefetched(todo):
            lines = self._batch(batch, images)
            with self._phase("write"):
                predictions.add(lines)
            done += len(batch)
            self.progress(done, len(samples), f"{self.errors} errors" if self.errors else "")
        return predictions.finish(samples)

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
        try:
            found = self._forward(samples, images)
        except torch.OutOfMemoryError:
            if len(samples) == 1:
                raise RunFailed("one sample does not fit into memory: use a smaller model or precision=bf16.") from None
            torch.cuda.empty_cache()
            self.backed_off = True
            return self._halves(samples, images)
        except Exception as error:
            if len(samples) == 1:
                return [self._error(samples[0], error)]
            return self._halves(samples, images)
        return [
            {"id": s.id, "prediction": p, "score": self._score(s, p), "status": "ok"}
            for s, p in zip(samples, found, strict=True)
        ]

    def _score(self, sample: Sample, prediction: Prediction) -> Any:
        return self.task.score(sample, prediction) if self.settings.get("labelled", True) else None

    def _halves(self, samples: Sequence[Sample], images: Mapping[Path, Any]) -> list[Line]:
        half = len(samples) // 2
        return self._predict(samples[:half], images) + self._predict(samples[half:], images)

    def _forward(self, samples: Sequence[Sample], images: Mapping[Path, Tensor]) -> list[Prediction]:
        model, device = self.model, self.model.device
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"),
        ):
            with self._phase("transfer"):
                paths = {p: i for i, p in enumerate(dict.fromkeys(p for s in samples for p in s.images))}
                pixels = torch.stack([images[p] for p in paths])
                if device.type == "cuda":
                    pixels = pixels.pin_memory()
                batch = Batch(
                    samples,
                    normalise(pixels.to(device, non_blocking=True), self.store.spec, model.dtype),
                    torch.tensor([[paths[p] for p in s.images] for s in samples], device=device),
                    self.settings,
                )
            with self._phase("encode"):
                states = model.encode(batch.images)
            with self._phase("predict"):
                found: list[Prediction] = getattr(model, self.task.capability)(states, batch)
                return found

    def _error(self, sample: Sample, cause: Exception) -> Line:
        self.errors += 1
        if self.errors >= MAX_ERRORS:
            raise RunFailed(f"{self.errors} samples failed, the last one ({sample.id}) with: {cause}") from cause
        return {"id": sample.id, "prediction": None, "score": None, "status": "error", "error": str(cause)}

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] += time.perf_counter() - start
