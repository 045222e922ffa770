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

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from .errors import UserError
from .options import MethodOptions

if TYPE_CHECKING:
    from .job import Job
    from .model import Model
    from .structure import Structure

Role = Literal["baseline", "pruner", "restorer"]


class Method(ABC):
    """One link of a chain. `options` are resolved; `apply` changes job.model through the job.

    Before anything is written `check` and `check_model` may refuse, the first on the model's structure alone. `apply`
    is then called once a cell, or once more after a kill: what takes long keeps its place by job.here.store(). What
    acts at run time is handed to job.changes.at_run_time() and comes back to `replay` wherever the model is opened.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    name: ClassVar[str]
    role: ClassVar[Role]
    version: ClassVar[int] = 1
    patterns: ClassVar[tuple[str, ...]] = ()
    uses_seed: ClassVar[bool] = False
    # Whether apply() may run in all of a cell's workers (torchrun) at once, each on its own copy of the model: it then
    # does the same in each, reaches its data by the job's functions, and writes no files but by CheckpointStore with
    # job.here.world. Where it is not said, the leading worker applies the method, and the others wait.
    parallel: ClassVar[bool] = False
    # Whether it reads samples of the train split. One that draws random numbers alone says False, and then takes tasks
    # without training data, too.
    reads_data: ClassVar[bool] = True
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

    @classmethod
    def replay(cls, model: Model, state: Any) -> None:
        """Do to an opened model what `job.changes.at_run_time(name, state)` declared: for methods that act when the
        model runs. state is JSON that lay on disk: refuse what is not as apply() wrote it."""
        raise UserError(f"the method {cls.name} declares nothing that acts at run time: this model is of another one.")


@dataclass(frozen=True)
class Context:
    """What a recipe may depend on. training: what the task and the model say of themselves for recipes that ask
    (publication -> its settings, see `vlbench.task.task` and `vlbench.model.Card`), so that no recipe names either."""

    suite: str
    task: str
    texts: bool  # whether the task's samples have texts
    sparsity: float | None
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def says(self, publication: str) -> Mapping[str, Any]:
        """Empty where neither the task nor the model says anything."""
        return self.training.get(publication, {})


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
