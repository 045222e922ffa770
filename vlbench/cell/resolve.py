"""`key=value` words -> one resolved, validated cell. Every mistake is collected and told at once.

A value comes from the defaults, then the recipe, then the words. A word belongs to the cell (task=, seed=), to the
task (decoding=) or to one link of the method chain (steps=); where several have an option of that name, a prefix says
whose it is: finetune.steps=, task.decoding=, evaluation.batch_size=.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import UserError, did_you_mean
from ..method import Method, Recipe
from ..options import MethodOptions, PruneOptions
from ..plugins.entry import Entry
from ..plugins.table import Table, table
from ..plugins.worlds import NO_WORLD, world_of
from ..task import Task
from .context import context_of
from .owners import _all_options, _owners_of
from .sentences import _sentences
from .spec import LinkSpec, Spec, Words

M = TypeVar("M", bound=BaseModel)
OF_THE_CHAIN = ("method", "recipe", "train")  # of a cell's own words: the dense model is of none


def resolve(given: Mapping[str, str]) -> Spec:
    """Words -> Spec. Raises one UserError with a line for every mistake."""
    return _Resolver(given).resolve()


class _Resolver:
    """The work of `resolve`. `errors` grows; only what can be judged in spite of them is judged."""

    FIELDS = tuple(Words.model_fields)

    def __init__(self, given: Mapping[str, str]) -> None:
        self.errors: list[str] = []
        self.given = dict(given)
        own = {key.removeprefix("evaluation."): key for key in given}
        self.of_data = {key for name, key in own.items() if name in Words.model_fields and name not in OF_THE_CHAIN}
        # The cell's own words (evaluation.KEY= is KEY=), and all others.
        self.general, self.rest = divide(given, self.errors)
        self.bare = {key for key in given if key in Words.model_fields}
        self.wrong: set[str] = set()

    def resolve(self) -> Spec:
        words = self._words()
        if not words.task and "task" not in self.wrong:
            self.errors.append(f"task= is missing. {did_you_mean('', table('tasks').entries)}")
        task = self._entry(table("tasks"), words.task) if words.task else None
        links = self._links(words.method)
        self._order(links)
        model = self._model(words, task)
        task_class: type[Task] | None = self._load(task)
        methods: dict[str, type[Method]] = {e.name: m for e in links if (m := self._load(e)) is not None}
        owners: dict[str, type[BaseModel]] = {name: cls.Options for name, cls in methods.items()}
        if task_class is not None:
            owners["task"] = task_class.Options
        complete = task_class is not None and bool(links) and len(methods) == len(links)
        values, recipe = self._recipe(words, links, methods, owners, model)
        if task_class is not None and words.suite == "mini":
            values["task"].update(task_class.mini)
        self._assign(values, owners, complete=complete)
        self._perturbation(values["task"])
        task_options = self._validated(task_class.Options, values["task"], "") if task_class else None
        split = self._split(words, task_class)
        usable = [entry for entry in links if entry.name in methods]
        options = [self._link_options(entry, methods[entry.name], values) for entry in usable]
        self._zeros_last(usable, options)
        if task_class is not None:
            refusals = {e.name: o.refusal(task_class.capability) for e, o in zip(usable, options, strict=True) if o}
            self.errors += [f"{name}.{why}." for name, why in refusals.items() if why]
        self._train(words, usable, options)
        if self.errors or task is None or model is None or task_class is None or task_options is None:
            raise UserError("\n".join(dict.fromkeys(self.errors)))
        chain = tuple(LinkSpec.of(e, methods[e.name], o) for e, o in zip(links, options, strict=True) if o is not None)
        of_data = {k: v for k, v in self.given.items() if k in self.of_data}
        return Spec(words, task, task_class, task_options, model, split, chain, recipe, self.given, of_data)

    def _perturbation(self, values: dict[str, Any]) -> None:
        """perturb= in the one way that identities have it."""
        if not values.get("perturb"):
            if "perturb_seed" in values:
                self.errors.append("perturb_seed= has no meaning without perturb=, like perturb=jpeg:3.")
            return
        from ..evaluation.perturbation import parse

        try:
            values["perturb"] = str(parse(str(values["perturb"])))
        except UserError as error:
            self.errors.append(str(error))
            del values["perturb"]

    def _words(self) -> Words:
        """The cell's own words; wrong ones are told and then taken for not given."""
        try:
            return Words.model_validate(self.general)
        except ValidationError as error:
            self.wrong = {str(problem["loc"][0]) for problem in error.errors()}
            if "task" not in self.general:
                self.errors.append(f"task= is missing. {did_you_mean('', table('tasks').entries)}")
            self.errors += [line for line in _sentences(error, "") if not line.startswith("task=")]
            right: dict[str, Any] = {k: v for k, v in self.general.items() if k not in self.wrong}
            return Words.model_construct(None, **{"task": "", **right})

    def _entry(self, rows: Table, name: str) -> Entry | None:
        try:
            return rows.get(name)
        except UserError as error:
            self.errors.append(str(error))
            return None

    def _load(self, entry: Entry | None) -> Any:
        """The plug-in's class, or None after telling why there is none."""
        try:
            return entry.load() if entry is not None else None
        except UserError as error:
            self.errors.append(str(error))
            return None

    def _links(self, text: str) -> list[Entry]:
        """a+b, with named chains spelled out and without the links that LINK=off drops."""
        rows = table("methods")
        links: list[Entry] = []
        for name in text.split("+"):
            if not name:
                what = "names a link that is empty" if text else "is empty"
                self.errors.append(f"method={text} {what}: write one method, or several with a + between two.")
                continue
            entry = self._entry(rows, name)
            for link in entry.facts.get("links", (name,)) if entry is not None else ():
                part = self._entry(rows, link)
                if part is not None and "links" in part.facts:
                    self.errors.append(f"{entry.file if entry else ''}: the chain {name} names the chain {link}.")
                elif part is not None:
                    links.append(part)
        names = [link.name for link in links]
        for name in dict.fromkeys(n for n in names if names.count(n) > 1):
            self.errors.append(f"method={text} has {name} twice: a chain names each link once.")
        return [link for number, link in enumerate(links) if not self._dropped(link.name, first=number == 0)]

    def _dropped(self, link: str, *, first: bool) -> bool:
        """Whether the words say LINK=off. Takes such words from `rest`, with the options that go with the link."""
        if link not in self.rest:
            return False
        value = self.rest.pop(link)
        if value != "off":
            self.errors.append(f"{link}={value}: only {link}=off can be said of a link; {link}.OPTION= sets an option.")
        elif first:
            self.errors.append(f"{link}=off: the first link of a chain cannot be dropped.")
        else:
            for key in [k for k in self.rest if k.startswith(link + ".")]:
                self.errors.append(f"{key}= has no meaning with {link}=off.")
                del self.rest[key]
            return True
        return False

    def _order(self, links: list[Entry]) -> None:
        """A restorer needs something before it: a pruner, or `dense` where the control is meant."""
        if links and links[0].facts["role"] == "restorer":
            name = links[0].name
            self.errors.append(
                f"method={name} has nothing to restore: write magnitude+{name}, or dense+{name} for the control."
            )
        self.errors += [
            f"{link.name} can only stand first in a chain." for link in links[1:] if link.facts["role"] == "baseline"
        ]

    def _zeros_last(self, links: list[Entry], options: list[MethodOptions | None]) -> None:
        """Units cannot be cut where single weights are zero already."""
        masked = ""
        for link, chosen in zip(links, options, strict=True):
            patterns = link.facts.get("patterns", ())
            cuts = getattr(chosen, "pattern", "structured") == "structured" and "structured" in patterns
            if masked and cuts:
                self.errors.append(
                    f"{link.name} removes whole units and cannot follow the zeros of {masked}: put it first."
                )
            if patterns and not cuts:
                masked = link.name

    def _train(self, words: Words, links: list[Entry], options: list[MethodOptions | None]) -> None:
        """train= names another task, for links that learn."""
        if not words.train:
            return
        known = self._entry(table("tasks"), words.train) is not None
        if known and words.train == words.task:
            self.errors.append(
                f"train={words.train} is the task itself, whose train split is taken anyway: leave it out."
            )
        chosen = [LinkSpec.of(e, e.load(), o) for e, o in zip(links, options, strict=True) if o is not None]
        if chosen and len(chosen) == len(links) and not any(link.learns for link in chosen):
            self.errors.append(
                f"train={words.train} has no meaning here: no link of method={words.method} learns from it."
            )
        if own := next((option.own_train for option in options if option is not None and option.own_train), ""):
            self.errors.append(f"{own} draws from the task's own train split: leave train= away, or {own}.")

    def _model(self, words: Words, task: Entry | None) -> Entry | None:
        rows = table("models").entries
        entry = self._entry(table("models"), words.model) if words.model else self._default_model(words, task)
        if entry is None or task is None:
            return entry
        capability = task.facts["capability"]
        if capability not in entry.facts["capabilities"]:
            able = [e.name for e in rows.values() if capability in e.facts["capabilities"]]
            self.errors.append(
                f"model={entry.name} cannot {capability}, which task={task.name} needs. "
                f"Models that can: {', '.join(able) or 'none'}."
            )
        elif words.suite == "mini" and _suite(entry) == "full" and not words.checkpoint and "suite" not in self.wrong:
            self.errors.append(
                f"model={entry.name} is of suite=full, and suite=mini uses the small models of the package: "
                "write suite=full, or leave model= out."
            )
        return entry

    def _default_model(self, words: Words, task: Entry | None) -> Entry | None:
        if task is None or "suite" in self.wrong:
            return None
        # A built-in first: no other card takes its place where no model is named.
        for entry in sorted(table("models").entries.values(), key=lambda entry: not entry.built_in):
            if _suite(entry) == words.suite and task.name in entry.facts.get("default_for", ()):
                return entry
        if words.suite == "mini" and world_of(task) is None:
            self.errors.append(NO_WORLD.format(task=task.name))
        else:
            self.errors.append(f"suite={words.suite} has no default model for task={task.name}: give model=NAME.")
        return None

    def _split(self, words: Words, task_class: type[Task] | None) -> str:
        if task_class is None:
            return ""
        if words.split and words.split not in task_class.report_splits():
            splits = task_class.report_splits()
            self.errors.append(f"split={words.split} is none of task={words.task}. {did_you_mean(words.split, splits)}")
        return words.split or task_class.roles()["report"]

    def _recipe(
        self,
        words: Words,
        links: list[Entry],
        methods: Mapping[str, type[Method]],
        owners: Mapping[str, type[BaseModel]],
        model: Entry | None,
    ) -> tuple[dict[str, dict[str, Any]], str]:
        """Option values of the recipe, and its name. A named chain's recipe comes after those of its links."""
        values: dict[str, dict[str, Any]] = {name: {} for name in (*owners, "task")}
        sources: list[tuple[str, Mapping[str, Recipe]]] = [(n, cls.recipes) for n, cls in methods.items()]
        for name in words.method.split("+"):
            entry = table("methods").entries.get(name)
            if entry is not None and "links" in entry.facts:
                sources.append(("", getattr(self._load(entry), "recipes", {})))
        names = {name for _, recipes in sources for name in recipes}
        wanted = words.recipe or ("mini" if words.suite == "mini" else "paper")
        if wanted not in names:
            if words.recipe and len(methods) == len(links):
                hint = did_you_mean(wanted, names)
                self.errors.append(f"recipe={wanted} is not known for method={words.method}. {hint}")
            return values, "default"
        context = context_of(words.suite, words.task, model, _fraction(self.rest, methods))
        for owner, recipes in sources:
            recipe = recipes.get(wanted, {})
            for key, value in (recipe(context) if callable(recipe) else recipe).items():
                full = f"{owner}.{key}" if owner and "." not in key else key
                # A dropped link has none; check_method finds misspelled keys.
                for link in _owners_of(full, owners)[:1]:
                    values[link][full.rpartition(".")[2]] = value
        return values, wanted

    def _assign(
        self, values: dict[str, dict[str, Any]], owners: Mapping[str, type[BaseModel]], *, complete: bool
    ) -> None:
        """Give every remaining word to its one owner. complete: all owners are known, so that a word without one is
        wrong; else it may belong to what could not be found, and is told only where no plug-in has such an option."""
        for key in sorted(self.bare - {"task", "method", "model"}):
            if fitting := _owners_of(key, owners):
                places = " or ".join(f"{o}.{key}=" for o in ("evaluation", *fitting))
                self.errors.append(f"{key}= belongs to the evaluation and to {' and '.join(fitting)}: write {places}.")
        mine: dict[str, set[str]] = {name: set() for name in values}
        for key, value in self.rest.items():
            name = key.rpartition(".")[2]
            fitting = _able(_owners_of(key, owners), owners, name, value)
            if len(fitting) > 1:
                places = " or ".join(f"{o}.{key}=" for o in fitting)
                self.errors.append(f"{key}= belongs to {' and '.join(fitting)}: write {places}.")
            elif not fitting:
                self._unknown(key, owners, complete=complete)
            elif name in mine[fitting[0]]:
                self.errors.append(f"{name}= of {fitting[0]} is given twice, with and without the prefix.")
            else:
                if name in ("ratio", "sparsity") and not mine[fitting[0]] & {"ratio", "sparsity"}:
                    for old in ("ratio", "sparsity"):  # two ways to say one thing: the word takes the recipe's place
                        values[fitting[0]].pop(old, None)
                values[fitting[0]][name] = value
                mine[fitting[0]].add(name)
                self.of_data |= {key} if fitting[0] == "task" else set()

    def _unknown(self, key: str, owners: Mapping[str, type[BaseModel]], *, complete: bool) -> None:
        prefix, dot, name = key.rpartition(".")
        if not complete:
            owners = {**_all_options(), **owners}
            if prefix not in owners if dot else _owners_of(key, owners):
                return
        if dot and prefix not in owners:
            parts = ", ".join((*owners, "evaluation"))
            self.errors.append(f"{key}= is not known here: {prefix!r} is no part of this cell ({parts}).")
            return
        names = {f for owner, model in owners.items() if not dot or owner == prefix for f in model.model_fields}
        self.errors.append(f"{key}= is not known here. {did_you_mean(name, names if dot else names | {*self.FIELDS})}")

    def _link_options(
        self, entry: Entry, cls: type[Method], values: Mapping[str, Mapping[str, Any]]
    ) -> MethodOptions | None:
        options = self._validated(cls.Options, values[entry.name], f"{entry.name}.")
        patterns = tuple(entry.facts.get("patterns", ()))
        if isinstance(options, PruneOptions) and options.n_m and "n:m" not in patterns:
            able = [e.name for e in table("methods").entries.values() if "n:m" in e.facts.get("patterns", ())]
            self.errors.append(
                f"sparsity={options.sparsity} is a pattern of single weights, and {entry.name} does not make it: "
                f"give a fraction like sparsity=0.5, or use {' or '.join(able)}."
            )
        if isinstance(options, PruneOptions) and not options.n_m and patterns == ("n:m",):
            self.errors.append(f"sparsity={options.sparsity}: {entry.name} makes n:m patterns only, like sparsity=2:4.")
        return options

    def _validated(self, model: type[M], values: Mapping[str, Any], prefix: str) -> M | None:
        """The model, or None after adding a sentence for every field that is wrong."""
        try:
            return model.model_validate(dict(values))
        except ValidationError as error:
            self.errors += _sentences(error, prefix)
            return None


def _able(fitting: list[str], owners: Mapping[str, type[BaseModel]], name: str, value: str) -> list[str]:
    """The only one of several owners whose option `name` can be that text (perturb=mgpo is an adapter's, perturb=jpeg:3
    the task's), or all of them. Of a number, which several may take, the user says whose it is."""
    able = [owner for owner in fitting if _takes(owners[owner], name, value)]
    return able if len(able) == 1 and not re.fullmatch(r"[-+.\deE]+", value) else fitting


def _takes(options: type[BaseModel], name: str, value: str) -> bool:
    try:
        options.model_validate({name: value})
    except ValidationError as error:
        return all(problem["loc"] != (name,) for problem in error.errors())
    return True


def divide(given: Mapping[str, str], errors: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """(the cell's own words, the rest). evaluation.KEY= is KEY= where a method has an option of that name too."""
    general: dict[str, str] = {}
    rest: dict[str, str] = {}
    for key, value in given.items():
        option = key.removeprefix("evaluation.")
        if option not in Words.model_fields:
            rest[key] = value
        elif option in general:
            errors.append(f"{option}= is given twice, with and without the prefix.")
        else:
            general[option] = value
    return general, rest


def _suite(model: Entry) -> str:
    return str(model.facts.get("suite", "full"))


def _fraction(rest: Mapping[str, str], methods: Mapping[str, type[Method]]) -> float | None:
    """The sparsity asked for, for recipes that depend on it. None without a pruner; mistakes are told later."""
    for name, cls in methods.items():
        if issubclass(cls.Options, PruneOptions):
            given = {k.removeprefix(name + "."): v for k, v in rest.items()}
            fractions = {k: v for k, v in given.items() if k in ("sparsity", "ratio")}
            try:
                return PruneOptions.model_validate(fractions or {"sparsity": _default_of(cls.Options)}).fraction
            except ValidationError:
                return None
    return None


def _default_of(options: type[BaseModel]) -> Any:
    return options.model_fields["sparsity"].default
