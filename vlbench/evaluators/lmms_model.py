"""The class that lmms-eval makes and asks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms

from .asking import opened


class VLBench(lmms):  # type: ignore[misc]
    """pretrained: a folder of `vlbench export`, of a run (runs/RUN/model), or the name of a model (`vlbench list
    models`), with checkpoint= where its weights are elsewhere. dtype: fp32 or bf16."""

    is_simple = True

    def __init__(
        self, pretrained: str, checkpoint: str = "", device: str | None = "", dtype: str = "fp32",
        batch_size: int | str = 1, max_batch_size: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.batch_size = int(batch_size)  # max_batch_size, which lmms-eval passes to every model, bounds nothing here
        here = "" if device is None or (device.startswith("cuda") and not torch.cuda.is_available()) else device
        self.asked = opened(pretrained, checkpoint=checkpoint, device=here, precision=dtype)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Requests hold (context, words of generation, pictures of a document, its number, task, split). Those of one
        set of words are asked together; answers come in the order of the requests."""
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            groups[repr(sorted(request.args[1].items(), key=str))].append(place)
        for places in groups.values():
            chosen = [requests[place].args for place in places]
            prompts = [context.replace("<image>", "").strip() for context, *_ in chosen]
            said = self.asked.answers(
                prompts, [self._pictures(*args[2:]) for args in chosen], words=chosen[0][1], batch_size=self.batch_size
            )
            for place, text in zip(places, said, strict=True):
                answers[place] = text
        return answers

    def _pictures(self, of_document: Any, number: Any, task: str, split: str) -> list[Any]:
        shown = of_document(self.task_dict[task][split][number])
        return [picture for picture in shown or () if hasattr(picture, "convert")]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("tasks that rank answers are not served: vlbench's own have decoding=rank")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("vlbench's models answer one question at a time")
