"""Open questions that a prompted model answers in its own words: the options, and candidates for those that rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, field_validator

from vlbench.errors import UserError
from vlbench.task import TaskOptions


class AnsweringOptions(TaskOptions):
    """Options of the question tasks whose answers are written. prompt, beams and max_length are of models that answer
    by prompt; BLIP's VQA head has its own."""

    decoding: Literal["generate", "rank"] = Field(
        "generate", description="generate: free text; rank: the likeliest of the answers of train"
    )
    k_test: int = Field(128, ge=1, description="rank: candidates scored in full, by likeliest first token")
    min_count: int = Field(3, ge=1, description="rank: training questions a candidate is the answer to")
    prompt: str | None = Field(None, description="words around the question, which stands at {}; left out: the model's")
    beams: int | None = Field(None, ge=1, description="width of the beam search; left out: the model's")
    max_length: int | None = Field(None, ge=1, description="tokens of an answer at most; left out: the model's")

    @field_validator("prompt")
    @classmethod
    def _has_a_place(cls, value: str | None) -> str | None:
        if value is not None and "{}" not in value:
            raise ValueError(f"{value!r} has no {{}} where the question goes")
        return value

    def settings(self, candidates: list[str]) -> dict[str, Any]:
        """What the capability gets. candidates: of decoding=rank."""
        options = {"prompt": self.prompt, "beams": self.beams, "max_length": self.max_length}
        given = {name: value for name, value in options.items() if value is not None}
        return {"decoding": self.decoding, "k_test": self.k_test, "candidates": candidates, **given}


def frequent(answers: Iterable[str], least: int) -> list[str]:
    """The answers of `least` questions or more, the most frequent first, then by the alphabet. Raises UserError where
    there is none."""
    counts = Counter(answers)
    kept = [answer for answer, n in counts.items() if answer and n >= least]
    if not kept:
        raise UserError(f"No answer of train is that of min_count={least} questions: lower it.")
    return sorted(kept, key=lambda answer: (-counts[answer], answer))
