"""The method contract: a method changes a model. Pruners prune, restorers train, chains join them.

A method is one file in methods/:

    @method("magnitude", title="Magnitude (Han et al. 2015)", role="pruner", patterns=("unstructured", "n:m"))
    class Magnitude(ScorePruner):
        def score(self, weight, statistics):
            return weight.abs()

and a named chain is another decorated class:

    @chain("upop", title="UPop (Shi et al. 2023)", links=("upop_search", "finetune"))
    class UPop(Chain): ...

Options are pydantic models: ranges, units and descriptions are the help text, unknown keys are errors.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

if TYPE_CHECKING:
    from .job import Job
    from .model import Model
    from .structure import Structure

Role = Literal["baseline", "pruner", "restorer"]


class MethodOptions(BaseModel):
    """Base of every method's options. A subclass that only changes a default (`steps: int = 300`) keeps the
    description and the range of the field it inherits."""

    # Infinities and NaN pass ge= and gt=, and have no place in the JSON that a cell's identity is taken of.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def told(self) -> dict[str, Any]:
        """Option -> value in JSON, as identities and records have them (see `later`)."""
        return told(self)

    def changed(self, *names: str) -> list[str]:
        """Those of `names` that are not at their default: for options that have a meaning together with others only."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].default]

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


def told(options: BaseModel) -> dict[str, Any]:
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
    it, the option enters neither identities nor records (`MethodOptions.told`), and the old results stay valid."""
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


class Method(ABC):
    """One link of a chain. `options` are resolved; `apply` changes job.model through the job."""

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    name: ClassVar[str]
    role: ClassVar[Role]
    version: ClassVar[int] = 1
    patterns: ClassVar[tuple[str, ...]] = ()
    uses_seed: ClassVar[bool] = False
    # Whether apply() may run in all of a cell's workers (torchrun) at once, each on its own copy of the model: it then
    # does the same in each, reaches its data by the job's functions, and writes no files but by CheckpointStore with
    # job.world. Where it is not said, the leading worker applies the method, and the others wait.
    parallel: ClassVar[bool] = False
    # recipe name -> option values; a callable gets the context of the cell (paper settings differ by task and target)
    recipes: ClassVar[Mapping[str, Recipe]] = {}

    def __init__(self, options: Any) -> None:
        self.options = options

    @classmethod
    def version_of(cls, options: Mapping[str, Any]) -> int:
        """The version that a cell with these options (as told) is known by. Where a number changes for some values of
        an option alone, it is higher for these, and results with others stay what they are."""
        return cls.version

    def check(self, structure: Structure) -> None:  # noqa: B027
        """Raise UserError for what cannot be done to a model of this structure. Asked of the first link of a chain
        before anything is trained or written."""

    def check_model(self, model: Model) -> None:  # noqa: B027
        """Raise UserError for what cannot be done to this model, whatever links before do to it. Asked of every link
        of a chain before anything is trained or written."""

    @abstractmethod
    def apply(self, job: Job) -> None:
        """Change the model. Raise UserError for what the user asked wrongly."""


@dataclass(frozen=True)
class Context:
    """What a recipe may depend on."""

    suite: str
    task: str
    model: str
    sparsity: float | None


Recipe = Mapping[str, Any] | Callable[[Context], Mapping[str, Any]]


class Chain:
    """A named chain. links: method names in order; each can be switched off with `LINK=off` but the first."""

    links: ClassVar[tuple[str, ...]]
    recipes: ClassVar[Mapping[str, Recipe]] = {}


C = TypeVar("C", bound=type)


def method(
    name: str,
    *,
    title: str,
    role: Role,
    patterns: tuple[str, ...] = (),
    version: int = 1,
    uses_seed: bool = False,
    paper: str = "",
) -> Callable[[C], C]:
    """Register a Method. All arguments are literals. version: bumped when a number could change.

    patterns: what a pruner can leave behind ("structured", "unstructured", "n:m"). uses_seed: the result depends on
    the seed, so that seeds are separate cells.
    """

    def register(cls: C) -> C:
        cls.name, cls.role, cls.patterns = name, role, patterns  # type: ignore[attr-defined]
        cls.version, cls.uses_seed = version, uses_seed  # type: ignore[attr-defined]
        return cls

    return register


def chain(name: str, *, title: str, links: tuple[str, ...], paper: str = "") -> Callable[[C], C]:
    """Register a named chain of methods. All arguments are literals."""

    def register(cls: C) -> C:
        cls.links = links  # type: ignore[attr-defined]
        return cls

    return register
