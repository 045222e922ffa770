"""The contract test of a method: `vlbench check method=NAME`, and the one parametrised test over every method.

The method runs, few steps and tiny, on a model with random weights and on a data set of noise that are made here, so
that nothing has to be downloaded and no trained weights are needed. Each yielded line is one passed check.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from ..cell.context import context_of
from ..cell.owners import unknown_recipe_keys
from ..compression.saved import load_model, save_model
from ..errors import RunFailed, UserError
from ..machine.ui import Screen
from ..method import Chain, Context, Method, Recipe, Role
from ..model import Model
from ..options import MethodOptions, PruneOptions
from ..plugins.entry import Entry
from ..plugins.table import table
from ..training.loop import Schedule
from .tiny import Outcome, Workshop

PATTERNS = ("structured", "unstructured", "n:m")
TOLERANCE = 0.02  # of the realised sparsity, against its target

T = TypeVar("T")


def check_method(name: str, screen: Screen, task: str = "") -> Iterator[str]:
    """Yield what holds, in words. task: on whose mini model and mini world the method runs; empty: a classifier and
    noise. Raises RunFailed with one sentence at the first thing that does not hold, UserError for a task that cannot
    be had."""
    entry = table("methods").get(name)
    cls = _attempt(entry, "it", entry.load)
    yield f"{entry.file} is imported"
    yield from _check_declaration(entry, cls)
    links = [table("methods").get(link) for link in entry.facts.get("links", (name,))]
    for link in links:
        yield from _check_options(entry, link)
    yield from _check_recipes(entry, cls, links)
    with tempfile.TemporaryDirectory(prefix="vlbench-check-") as folder:
        workshop = Workshop(entry, Path(folder), screen, task)
        for target in _targets(links):
            yield from _check_run(workshop, target)


def _attempt(entry: Entry, what: str, action: Callable[[], T]) -> T:
    """action(); whatever it raises becomes the one sentence that the user gets, with the cause behind it."""
    try:
        return action()
    except RunFailed as error:
        raise _failure(entry, str(error)) from error
    except Exception as error:
        raise _failure(entry, f"{what} raises {type(error).__name__}: {error}") from error


def _failure(entry: Entry, what: str) -> RunFailed:
    return RunFailed(f"method={entry.name} ({entry.file}): {what}")


# What the file says ------------------------------------------------------------------------------------------------


def _check_declaration(entry: Entry, cls: Any) -> Iterator[str]:
    """The decorator's facts, and the docstring."""
    facts = entry.facts
    chain = "links" in facts
    wanted: type[Any] = Chain if chain else Method
    if not isinstance(cls, type) or not issubclass(cls, wanted):
        raise _failure(entry, f"{entry.attribute} is no subclass of vlbench.method.{wanted.__name__}")
    if not (cls.__dict__.get("__doc__") or "").strip():
        raise _failure(entry, f"{entry.attribute} has no docstring, which is what `vlbench help` prints")
    if chain:
        yield f"it declares the chain {' -> '.join(facts['links'])}, and says what it is"
        return
    role, patterns = facts["role"], tuple(facts.get("patterns", ()))
    if role not in get_args(Role):
        raise _failure(entry, f"role={role!r} is none of {', '.join(get_args(Role))}")
    if unknown := [p for p in patterns if p not in PATTERNS]:
        raise _failure(entry, f"patterns has {unknown[0]!r}, which is none of {', '.join(PATTERNS)}")
    if (role == "pruner") != bool(patterns):
        raise _failure(entry, "a pruner names the patterns it can leave behind, and nothing else does")
    if (role == "pruner") != issubclass(getattr(cls, "Options", MethodOptions), PruneOptions):
        raise _failure(entry, "the options of a pruner, and only those, are a subclass of PruneOptions")
    yield f"it declares a {role}{' of ' * bool(patterns)}{', '.join(patterns)}, and says what it is"


def _check_options(entry: Entry, link: Entry) -> Iterator[str]:
    options: type[MethodOptions] = link.load().Options
    if silent := [name for name, field in options.model_fields.items() if not field.description]:
        raise _failure(entry, f"the option {link.name}.{silent[0]} has no description")
    defaults = {name: field.default for name, field in options.model_fields.items() if not field.is_required()}
    _validate(entry, f"the defaults of {link.name}", options, defaults)
    if names := ", ".join(options.model_fields):
        yield f"the options of {link.name} are described, and their defaults are legal: {names}"


def _check_recipes(entry: Entry, cls: Any, links: Sequence[Entry]) -> Iterator[str]:
    """Every recipe, for every task and a low and a high target, sets options that exist to values that are legal, or
    tells the user why it has none for the task."""
    owners = {link.name: link.load().Options for link in links}
    for name, recipe in cls.recipes.items():
        for suite, task, target in product(("mini", "full"), table("tasks").entries, (0.3, 0.75)):
            what, context = f"recipe={name} for task={task}", context_of(suite, task, None, target)
            try:
                values = _values(recipe, context)
            except UserError:
                continue
            except Exception as error:
                raise _failure(entry, f"{what} raises {type(error).__name__}: {error}") from error
            if wrong := unknown_recipe_keys(name, values, owners):
                raise _failure(entry, wrong[0])
            for link, options in owners.items():
                options_of_link = {k.rpartition(".")[2]: v for k, v in values.items() if _belongs(k, link, options)}
                _validate(entry, what, options, options_of_link)
        yield f"recipe={name} sets legal values"


def _values(recipe: Recipe, context: Context) -> Mapping[str, Any]:
    return recipe(context) if callable(recipe) else recipe


def _belongs(key: str, link: str, options: type[BaseModel]) -> bool:
    prefix, dot, name = key.rpartition(".")
    return prefix == link if dot else name in options.model_fields


def _validate(entry: Entry, what: str, options: type[BaseModel], values: Mapping[str, Any]) -> None:
    """What is given must be legal; what is not given may be missing."""
    try:
        options.model_validate(dict(values))
    except ValidationError as error:
        for mistake in error.errors():
            if mistake["type"] != "missing":
                raise _failure(entry, f"{what}: {'.'.join(map(str, mistake['loc']))}: {mistake['msg']}") from None


# What the method does ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One run to make: the words that ask for it, and what must come out. fraction: None for what does not prune;
    patterns: what the pruner declares."""

    words: Mapping[str, str]
    fraction: float | None = None
    n_m: tuple[int, int] | None = None
    patterns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(f"{k.rpartition('.')[2]}={v}" for k, v in self.words.items()) or "defaults"


def _targets(links: Sequence[Entry]) -> list[Target]:
    """Two fractions and 2:4, as far as the first pruner's patterns go."""
    patterns = next((tuple(link.facts["patterns"]) for link in links if link.facts.get("patterns")), ())
    owner = next((link.name for link in links if link.facts.get("patterns")), "")
    targets = []
    if set(patterns) & {"structured", "unstructured"}:
        targets += [Target({f"{owner}.sparsity": str(f)}, f, None, patterns) for f in (0.5, 0.75)]
    if "n:m" in patterns:
        targets.append(Target({f"{owner}.sparsity": "2:4"}, 0.5, (2, 4), patterns))
    return targets or [Target({})]


def _check_run(workshop: Workshop, target: Target) -> Iterator[str]:
    """One run, and everything that must hold after it."""
    entry = workshop.entry
    outcome = _attempt(entry, f"a run with {target}", lambda: workshop.run(target.words))
    outputs = workshop.outputs(outcome.model)
    if not bool(torch.isfinite(outputs).all()):
        raise _failure(entry, f"the outputs of the model are not finite after a run with {target}")
    yield f"{target}: the outputs stay finite"
    if target.fraction is not None:
        yield _check_sparsity(entry, target, outcome)
        yield _check_pattern(entry, target, outcome)
    yield _check_seed(workshop, target, outcome)
    yield _check_reload(workshop, target, outcome, outputs)
    if outcome.state.masks or any(bool((weight == 0).any()) for weight in _weights(outcome).values()):
        yield _check_zeros(workshop, target, outcome)


def _weights(outcome: Outcome) -> dict[str, Tensor]:
    """The prunable set as it is now."""
    net = outcome.model.net
    return {name: net.get_parameter(name).detach() for name in outcome.model.structure().matrices}


def _check_sparsity(entry: Entry, target: Target, outcome: Outcome) -> str:
    left = sum(int(weight.count_nonzero()) for weight in _weights(outcome).values())
    realised = 1 - left / outcome.size
    if target.fraction is None or abs(realised - target.fraction) > TOLERANCE:
        raise _failure(entry, f"{target} removed {realised:.1%} of the prunable set")
    return f"{target}: {realised:.1%} of the prunable set is gone"


def _check_pattern(entry: Entry, target: Target, outcome: Outcome) -> str:
    """What the job was told is what was declared, and an n:m pattern holds in every matrix."""
    pattern = outcome.state.pattern
    if target.n_m is None:
        if pattern not in target.patterns:
            raise _failure(
                entry,
                f"{target}: the job was told the pattern {pattern!r} (by job.changes.mask() and job.changes.cut()), "
                f"and the decorator says {', '.join(target.patterns)}",
            )
        return f"{target}: the pattern is {pattern}"
    n, m = target.n_m
    if pattern != f"{n}:{m}":
        raise _failure(entry, f"{target}: the job was told the pattern {pattern!r}, not {n}:{m}")
    for name, weight in _weights(outcome).items():
        if weight.shape[1] % m or not bool(((weight.reshape(-1, m) != 0).sum(1) == n).all()):
            raise _failure(entry, f"{target}: {name} does not keep {n} of every {m} columns")
    return f"{target}: every {m} columns of a row keep exactly {n}"


def _check_seed(workshop: Workshop, target: Target, outcome: Outcome) -> str:
    """The same seed gives the same weights; another one, where the method says so, the same weights too."""
    entry = workshop.entry
    again = _attempt(entry, f"a second run with {target}", lambda: workshop.run(target.words))
    if differing := _difference(outcome.model, again.model):
        raise _failure(entry, f"two runs with {target} and one seed differ in {differing}")
    if any(link.method.uses_seed for link in workshop.links(target.words)):
        return f"{target}: the same seed gives the same weights"
    other = _attempt(entry, f"a run with {target} and seed=1", lambda: workshop.run(target.words, seed=1))
    if differing := _difference(outcome.model, other.model):
        raise _failure(entry, f"seed=1 changes {differing}, and the decorator does not say uses_seed=True")
    return f"{target}: the weights are the same every time, for every seed"


def _difference(a: Model, b: Model) -> str:
    """The first tensor that differs, or nothing."""
    ours, theirs = a.net.state_dict(), b.net.state_dict()
    differing = [k for k in ours if k not in theirs or not torch.equal(ours[k], theirs[k])]
    return differing[0] if differing else ""


def _check_reload(workshop: Workshop, target: Target, outcome: Outcome, outputs: Tensor) -> str:
    entry, folder = workshop.entry, workshop.folder / f"saved-{workshop.runs}"

    def reload() -> Model:
        save_model(folder, outcome.model, outcome.state)
        model = load_model(folder)[0]
        model.place("fp32")
        return model

    model = _attempt(entry, f"saving and loading the model of {target}", reload)
    if not torch.equal(workshop.outputs(model), outputs):
        raise _failure(entry, f"the saved and reloaded model of {target} gives other outputs")
    return f"{target}: the saved model gives bit-equal outputs when it is loaded"


def _check_zeros(workshop: Workshop, target: Target, outcome: Outcome) -> str:
    """The zeros that the job knows of are there, and two steps of training on top leave all zeros alone. Last, because
    it changes the model."""
    entry = workshop.entry
    zeros = {name: weight == 0 for name, weight in _weights(outcome).items()}
    for name, keep in outcome.state.masks.items():
        if not bool(zeros[name].cpu()[~keep].all()):
            raise _failure(entry, f"{target}: weights of {name} that a mask had set to zero are not zero any more")
    job, schedule = workshop.job(outcome, 0), Schedule.model_validate({"steps": 2, "lr": 1e-2, "batch_size": 8})
    _attempt(entry, f"finetuning after {target}", lambda: job.train("contract", schedule))
    for name, weight in _weights(outcome).items():
        if not bool((weight[zeros[name]] == 0).all()):
            raise _failure(
                entry, f"{target}: zeros of {name} do not survive finetuning: set them with job.changes.mask()"
            )
    return f"{target}: the zeros survive finetuning"
