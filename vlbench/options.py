"""What a user may say of a method: pydantic models whose ranges, units and descriptions are the help text.

Unknown keys are errors. An option that came after results were published is a `later` one: left at its default it
enters neither identities nor records.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Calibration:
    """The samples that a link looks at. source: a task or a file of captions; empty: the task's own train split.
    images: the folder of the file's images; empty: its own. samples: how many."""

    source: str
    images: str
    samples: int


class MethodOptions(BaseModel):
    """Base of every method's options. A subclass that only changes a default (`steps: int = 300`) keeps the
    description and the range of the field it inherits."""

    # Infinities and NaN pass ge= and gt=, and have no place in the JSON that a cell's identity is taken of.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def recorded(self) -> dict[str, Any]:
        """Option -> value in JSON, as identities and records have them (see `later`)."""
        return recorded(self)

    def changed(self, *names: str) -> list[str]:
        """Those of `names` that are not at their default: for options that have a meaning together with others only."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].default]

    @property
    def looks_at(self) -> Calibration | None:
        """The samples that the method looks at without training on them; None: it looks at none."""
        return None

    @property
    def chooses(self) -> bool:
        """Whether something is chosen on the select split, which must then be there before anything is done."""
        return False

    @property
    def checks_task(self) -> bool:
        """Whether `check_task` has something to ask. Where not, a finished cell is found without importing its methods:
        an option that alone makes it look says so here."""
        return type(self).check_task is not MethodOptions.check_task

    def check_task(self, task: Any) -> None:
        """Raise UserError for a Task whose samples these options cannot be used with. Asked once its data are there,
        before anything is written."""

    @property
    def own_train(self) -> str:
        """The option, as it is written, that needs the task's own train split, so that train= has no place beside it;
        empty where there is none."""
        return ""

    def refusal(self, capability: str) -> str:
        """Why these options do not go with tasks of `capability`, in one sentence; empty where they do."""
        return ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in inspect.get_annotations(cls):
            inherited = next((f for base in cls.__mro__[1:] if (f := _fields(base).get(name))), None)
            value = cls.__dict__.get(name)
            if inherited is not None and value is not None and not isinstance(value, FieldInfo):
                setattr(cls, name, Field(value, description=inherited.description, **_range_of(inherited)))


def recorded(options: BaseModel) -> dict[str, Any]:
    """Option -> value in JSON, but for those that came later and are at their default."""
    fields, values = type(options).model_fields, options.model_dump(mode="json")
    return {k: v for k, v in values.items() if not (_is_later(fields[k]) and getattr(options, k) == fields[k].default)}


def _is_later(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, Mapping) and bool(extra.get("later"))


def _fields(cls: type) -> Mapping[str, FieldInfo]:
    return cls.model_fields if issubclass(cls, BaseModel) and cls is not BaseModel else {}


def _range_of(field: FieldInfo) -> dict[str, Any]:
    """The ge=, gt=, le=, lt=, multiple_of= of a field."""
    keys = ("ge", "gt", "le", "lt", "multiple_of")
    return {key: getattr(part, key) for part in field.metadata for key in keys if hasattr(part, key)}


def later(default: Any, **about: Any) -> Any:
    """A field for an option that came after results were published, whose default does what was done before: left at
    it, the option enters neither identities nor records (`MethodOptions.recorded`), and the old results stay valid."""
    return Field(default, json_schema_extra={"later": True}, **about)


class PruneOptions(MethodOptions):
    """Options of every pruner. A subclass states its patterns in the `method` decorator; n:m is refused elsewhere."""

    sparsity: float | str = Field(
        0.5,
        description="fraction of the prunable set's entries to remove, in (0, 1); ratio=2x says the same as 0.5",
    )

    @model_validator(mode="before")
    @classmethod
    def _ratio(cls, data: Any) -> Any:
        """`ratio=2x`, as the papers write it: 2x keeps a half."""
        if isinstance(data, Mapping) and "ratio" in data:
            data = dict(data)
            ratio = str(data.pop("ratio"))
            if not re.fullmatch(r"\d+(\.\d+)?x?", ratio) or float(ratio.rstrip("x")) <= 1:
                raise ValueError(f"ratio={ratio} should be a number above 1, like 2x")
            if "sparsity" in data:
                raise ValueError("give sparsity= or ratio=, not both")
            data["sparsity"] = 1 - 1 / float(ratio.rstrip("x"))
        return data

    @field_validator("sparsity", mode="before")
    @classmethod
    def _range(cls, value: Any) -> float | str:
        text = str(value)
        pattern = re.fullmatch(r"(\d+):(\d+)", text)
        if pattern:
            n, m = int(pattern[1]), int(pattern[2])
            if not 0 < n < m:
                raise ValueError(f"{text} should be n:m with 0 < n < m, like 2:4")
            return text
        try:
            number = float(text)
        except ValueError:
            raise ValueError(f"{text} should be a fraction like 0.5, or n:m like 2:4") from None
        if not 0 < number < 1:
            raise ValueError(f"{text} should be above 0 and below 1: the fraction to remove")
        return number

    @property
    def n_m(self) -> tuple[int, int] | None:
        """(n kept, m) of an n:m target, None for a fraction."""
        if isinstance(self.sparsity, str):
            n, m = self.sparsity.split(":")
            return int(n), int(m)
        return None

    @property
    def fraction(self) -> float:
        """The target as a fraction of the prunable set."""
        n_m = self.n_m
        return 1 - n_m[0] / n_m[1] if n_m else float(self.sparsity)
