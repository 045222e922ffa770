"""`key=value` words -> one resolved, validated cell. Every mistake is collected and told at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import UserError, did_you_mean
from .method import Context, MethodOptions, PruneOptions
from .plugins import Entry, Table, table
from .task import TaskOptions


class Words(BaseModel):
    """The keys that every cell has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field(description="the benchmark")
    method: str = Field("dense", description="a method, or a chain like magnitude+finetune")
    model: str = Field("", description="a model; by default the suite's model for the task")
    suite: Literal["mini", "full"] = Field("mini", description="mini: everything ships in the package; full: your data")
    recipe: str = Field("", description="a named set of option values of the method")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of methods that draw random numbers")
    split: str = Field("", description="the split to evaluate; by default the task's report split")
    checkpoint: str = Field("", description="weights to use instead of the card's: a model folder or a file")
    label: str = Field("", description="a name for your own checkpoint in tables", pattern=r"^[\w.+-]*$")
    limit: int = Field(0, ge=0, description="evaluate only the first N samples; never enters a leaderboard")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="precision of evaluation and training")
    batch_size: int = Field(0, ge=0, description="samples a batch in evaluation; 0: chosen by the suite")


@dataclass(frozen=True)
class LinkSpec:
    """One link of the chain, with its options resolved."""

    entry: Entry
    method: type
    options: MethodOptions

    @property
    def version(self) -> str:
        """The built-in's version number, or the digest of a stranger's source."""
        return self.entry.digest() or str(self.method.version)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Spec:
    """A resolved cell, before anything was read from disk."""

    words: Words
    task: Entry
    task_class: type
    task_options: TaskOptions
    model: Entry
    links: tuple[LinkSpec, ...]
    recipe: str

    @property
    def method(self) -> str:
        """The chain as a table prints it: a named chain with all its links keeps its name."""
        names = [link.entry.name for link in self.links]
        for entry in table("methods").entries.values():
            if "links" in entry.facts and list(entry.facts["links"]) == names:
                return entry.name
        return "+".join(names)

    @property
    def uses_seed(self) -> bool:
        return any(link.method.uses_seed for link in self.links)  # type: ignore[attr-defined]

    @property
    def target(self) -> str:
        """The sparsity target as written (0.5, 2:4), empty for a chain that does not prune."""
        for link in self.links:
            if isinstance(link.options, PruneOptions):
                return str(link.options.sparsity)
        return ""


def parse(words: Iterable[str]) -> dict[str, str]:
    """["task=vqav2", ...] -> {"task": "vqav2"}. Raises UserError for a word without '=', or a key given twice."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"{word!r} should be key=value, like task=vqav2 (flags start with --).")
        if key in found:
            raise UserError(f"{key}= is given twice ({found[key]!r} and {value!r}).")
        found[key] = value
    return found


def resolve(given: Mapping[str, str]) -> Spec:
    """Words -> Spec. Raises one UserError with a line for every mistake."""
    errors: list[str] = []
    general = {k: v for k, v in given.items() if k in Words.model_fields}
    rest = {k: v for k, v in given.items() if k not in Words.model_fields}
    words = _validated(Words, general, "", errors)
    if words is None and "task" not in given:
        raise UserError("\n".join([f"task= is missing. {did_you_mean('', table('tasks').entries)}", *errors[1:]]))
    if words is None:
        words = Words.model_construct(**{"task": given["task"], "method": given.get("method", "dense")})
    task = _entry(table("tasks"), words.task, errors)
    links, dropped = _chain(words.method, rest, errors)
    rest = {k: v for k, v in rest.items() if k not in dropped}
    model = _model(words, task, errors) if task else None
    if errors and (task is None or not links):
        raise UserError("\n".join(errors + _unknown_general(rest)))
    return _with_options(words, task, model, links, rest, errors)


def _with_options(
    words: Words,
    task: Entry | None,
    model: Entry | None,
    links: list[Entry],
    rest: Mapping[str, str],
    errors: list[str],
) -> Spec:
    """The second half of resolve: import the plug-ins and give every remaining word to its owner."""
    assert task is not None
    task_class = task.load()
    methods = [entry.load() for entry in links]
    owners: dict[str, type[BaseModel]] = {e.name: m.Options for e, m in zip(links, methods, strict=True)}
    owners["task"] = task_class.Options
    values: dict[str, dict[str, Any]] = {name: {} for name in owners}
    recipe = _apply_recipe(words, links, methods, rest, owners, values, errors)
    for key, value in rest.items():
        _assign(key, value, owners, values, errors)
    task_options = _validated(task_class.Options, values["task"], "", errors)
    resolved = []
    for entry, cls in zip(links, methods, strict=True):
        options = _validated(cls.Options, values[entry.name], f"{entry.name}.", errors)
        if options is not None:
            _check_pattern(entry, options, errors)
            resolved.append(LinkSpec(entry, cls, options))
    _check_order(links, errors)
    if errors or model is None or task_options is None:
        raise UserError("\n".join(errors))
    return Spec(words, task, task_class, task_options, model, tuple(resolved), recipe)


def _entry(rows: Table, name: str, errors: list[str]) -> Entry | None:
    try:
        return rows.get(name)
    except UserError as error:
        errors.append(str(error))
        return None


def _chain(text: str, rest: Mapping[str, str], errors: list[str]) -> tuple[list[Entry], set[str]]:
    """a+b, with named chains spelled out; and the names of the links that LINK=off drops."""
    rows = table("methods")
    links: list[Entry] = []
    dropped: set[str] = set()
    for name in text.split("+"):
        entry = _entry(rows, name, errors)
        if entry is not None:
            for link in entry.facts.get("links", (name,)):
                part = _entry(rows, link, errors)
                if part is not None and len(links) and rest.get(link) == "off":
                    dropped.add(link)
                elif part is not None:
                    links.append(part)
    names = [link.name for link in links]
    for name in {n for n in names if names.count(n) > 1}:
        errors.append(f"method={text} has {name} twice: a chain names each link once.")
    return links, dropped


def _model(words: Words, task: Entry, errors: list[str]) -> Entry | None:
    rows = table("models")
    if words.model:
        entry = _entry(rows, words.model, errors)
    else:
        fitting = [
            e
            for e in rows.entries.values()
            if e.facts.get("suite", "full") == words.suite and task.name in e.facts.get("default_for", ())
        ]
        entry = fitting[0] if fitting else None
        if entry is None:
            errors.append(f"suite={words.suite} has no default model for task={task.name}: give model=NAME.")
    capability = task.facts["capability"]
    if entry is not None and capability not in entry.facts["capabilities"]:
        able = [e.name for e in rows.entries.values() if capability in e.facts["capabilities"]]
        errors.append(
            f"model={entry.name} cannot {capability}, which task={task.name} needs. Models that can: {', '.join(able)}."
        )
    return entry


def _apply_recipe(
    words: Words,
    links: Sequence[Entry],
    methods: Sequence[type],
    rest: Mapping[str, str],
    owners: Mapping[str, type[BaseModel]],
    values: dict[str, dict[str, Any]],
    errors: list[str],
) -> str:
    """Write the recipe's values; returns its name. A named chain's recipe comes after those of its links."""
    sources: list[tuple[str, Mapping[str, Any]]] = [
        (entry.name, cls.recipes)
        for entry, cls in zip(links, methods, strict=True)  # type: ignore[attr-defined]
    ]
    rows = table("methods")
    for name in words.method.split("+"):
        if name in rows.entries and "links" in rows.entries[name].facts:
            sources.append(("", rows.get(name).load().recipes))
    known = {name for _, recipes in sources for name in recipes}
    wanted = words.recipe or ("mini" if words.suite == "mini" else "paper")
    if wanted not in known:
        if words.recipe:
            errors.append(f"recipe={wanted} is not known for method={words.method}. {did_you_mean(wanted, known)}")
        return "default"
    context = Context(words.suite, words.task, words.model, _fraction(rest))
    for owner, recipes in sources:
        found = recipes.get(wanted, {})
        for key, value in (found(context) if callable(found) else found).items():
            _assign(
                f"{owner}.{key}" if owner and "." not in key else key,
                value,
                owners,
                values,
                errors,
                strict=False,
            )
    return wanted


def _fraction(rest: Mapping[str, str]) -> float | None:
    """The sparsity asked for, for recipes that depend on it; mistakes are told later."""
    try:
        return PruneOptions.model_validate({k: v for k, v in rest.items() if k in ("sparsity", "ratio")}).fraction
    except ValidationError:
        return None


def _assign(
    key: str,
    value: Any,
    owners: Mapping[str, type[BaseModel]],
    values: dict[str, dict[str, Any]],
    errors: list[str],
    *,
    strict: bool = True,
) -> None:
    """Give key=value to the one owner that has this field. strict=False: a recipe may set what a dropped link lacks."""
    owner, dot, name = key.partition(".")
    fitting = [o for o, model in owners.items() if (o == owner if dot else True) and _has(model, name if dot else key)]
    if len(fitting) == 1:
        values[fitting[0]][name if dot else key] = value
    elif fitting:
        places = " or ".join(f"{o}.{key}=" for o in fitting)
        errors.append(f"{key}= belongs to {' and '.join(fitting)}: write {places}.")
    elif strict:
        known = {f for o, model in owners.items() if not dot or o == owner for f in model.model_fields}
        known = known if dot and owner in owners else known | set(Words.model_fields)
        errors.append(f"{key}= is not known here. {did_you_mean(name if dot else key, known)}")


def _has(model: type[BaseModel], name: str) -> bool:
    return name in model.model_fields or (name == "ratio" and issubclass(model, PruneOptions))


def _validated(model: type[BaseModel], values: Mapping[str, Any], prefix: str, errors: list[str]) -> Any:
    """The model, or None after adding a sentence for every field that is wrong."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        for one in error.errors():
            where = ".".join(str(part) for part in one["loc"])
            message = one["msg"].removeprefix("Value error, ")
            given = "" if one["type"] == "value_error" else f"{prefix}{where}={one['input']}: "
            if one["type"] == "value_error" and where:
                given = f"{prefix}{where}: "
            errors.append(f"{given}{message}.")
        return None


def _check_pattern(entry: Entry, options: MethodOptions, errors: list[str]) -> None:
    if isinstance(options, PruneOptions) and options.n_m and "n:m" not in entry.facts.get("patterns", ()):
        able = [e.name for e in table("methods").entries.values() if "n:m" in e.facts.get("patterns", ())]
        errors.append(
            f"sparsity={options.sparsity} is a pattern of single weights, and {entry.name} removes whole units: "
            f"give a fraction like sparsity=0.5, or use {' or '.join(able)}."
        )


def _check_order(links: Sequence[Entry], errors: list[str]) -> None:
    """A restorer needs something before it: a pruner, or `dense` where the control is meant."""
    if links and links[0].facts.get("role") == "restorer":
        name = links[0].name
        errors.append(
            f"method={name} has nothing to restore: write magnitude+{name}, or dense+{name} for the trained control."
        )
    for link in links[1:]:
        if link.facts.get("role") == "baseline":
            errors.append(f"{link.name} can only stand first in a chain.")


def _unknown_general(rest: Mapping[str, str]) -> list[str]:
    """Misspelled general keys, told even when task or method could not be found."""
    hints = []
    for key in rest:
        hint = did_you_mean(key, Words.model_fields)
        if "." not in key and hint.startswith("Did"):
            hints.append(f"{key}= is not known here. {hint}")
    return hints
