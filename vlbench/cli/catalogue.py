"""`vlbench list` and `vlbench help`: what there is, read from declarations."""

from __future__ import annotations

import json as jsonlib
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ..errors import UserError, did_you_mean
from ..plugins.entry import Entry
from ..plugins.kinds import Kind
from ..plugins.table import table

KINDS: tuple[Kind, ...] = ("tasks", "models", "methods", "runtimes", "capabilities")
PLURAL: dict[str, Kind] = {"method": "methods", "task": "tasks", "model": "models", "capability": "capabilities"}
WIDTH = 100  # columns of help, or the terminal's where it has fewer


def print_catalogue(what: str, runs: Path, *, json: bool) -> None:
    """Print one table or all. Imports no plug-in."""
    if what and what not in (*KINDS, "runs"):
        raise UserError(f"vlbench list {what}: {did_you_mean(what, (*KINDS, 'runs'))}")
    if what == "runs":
        return _print_runs(runs, json=json)
    kinds = [k for k in KINDS if not what or what == k]
    if json:
        print(jsonlib.dumps({k: [_facts(e) for e in table(k).entries.values()] for k in kinds}, indent=1))
        return None
    for kind in kinds:
        print(f"{kind}:")
        entries = table(kind).entries.values()
        names = max((len(e.name) for e in entries), default=0)
        titles = max((len(e.facts["title"]) for e in entries), default=0)
        for entry in entries:
            note = "" if entry.built_in else f"  ({entry.file})"
            print(f"  {entry.name:<{names}}  {entry.facts['title']:<{titles}}  {_detail(entry)}{note}".rstrip())
        for file, why in table(kind).broken.items():
            print(f"  ! {file} cannot be read: {why}")
        print()
    print("`vlbench help method=NAME` (task=, model=) tells more.")
    return None


def _facts(entry: Entry) -> dict[str, Any]:
    return {"name": entry.name, "file": str(entry.file), "built_in": entry.built_in, **entry.facts}


def _detail(entry: Entry) -> str:
    """What a reader chooses by: the last column of a table."""
    facts = entry.facts
    if "links" in facts:
        return " -> ".join(facts["links"])
    if entry.kind == "capabilities":
        return "models: " + str(sum(entry.name in e.facts["capabilities"] for e in table("models").entries.values()))
    if entry.kind == "methods":
        return ", ".join((facts["role"], *facts.get("patterns", ())))
    if entry.kind == "models":
        return ", ".join((*facts["capabilities"], f"suite={facts.get('suite', 'full')}"))
    if entry.kind == "runtimes":
        return ", ".join(facts.get("packages", ()))
    return f"{facts['capability']}, {facts['metric']}"


def _print_runs(runs: Path, *, json: bool) -> None:
    from ..records.server import server_score

    rows: list[dict[str, Any]] = []
    for folder in sorted(p for p in runs.glob("*") if (p / "cell.json").is_file()):
        server = server_score(folder)
        finished = (folder / "result.json").is_file() or bool(server)
        rows.append({"run": folder.name, "state": _state(folder, finished=finished), **server})
    if json:
        print(jsonlib.dumps(rows, indent=1))
        return
    for row in rows:
        scored = f"  ({', '.join(row['flags'])}: {_numbers(row['server'])})" if "server" in row else ""
        print(f"{row['state']:<11} {row['run']}{scored}")
    if not rows:
        print(f"no runs in {runs}")


def _state(folder: Path, *, finished: bool) -> str:
    """A link is nobody's run here: what it leads to is not this folder's."""
    return "a link" if folder.is_symlink() else "done" if finished else "unfinished"


def _numbers(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in metrics.items())


def check_all() -> list[str]:
    """Import every plug-in; one sentence for each that cannot be used."""
    broken = []
    for kind in KINDS:
        broken += [f"{file} cannot be read: {why}" for file, why in table(kind).broken.items()]
        for entry in table(kind).entries.values():
            try:
                entry.load()
            except UserError as error:
                broken.append(str(error))
    return list(dict.fromkeys(broken))


def print_help(words: Sequence[str]) -> None:
    """Print what plug-ins (method=NAME, task=NAME, model=NAME, or a NAME alone) are and take."""
    # All are looked up and imported first: a mistake prints nothing but its sentence.
    entries = [entry for word in words for entry in _named(word)]
    classes = [entry.load() for entry in entries]
    for number, (entry, cls) in enumerate(zip(entries, classes, strict=True)):
        print("\n" * (number > 0), end="")
        _print_entry(entry, cls)


def _named(word: str) -> list[Entry]:
    key, equals, value = word.partition("=")
    if equals and key in PLURAL:
        return [table(PLURAL[key]).get(name) for name in value.split("+")]
    alike = [table(kind).entries[word] for kind in KINDS if word in table(kind).entries]
    if not alike:
        hint = did_you_mean(word, [name for kind in KINDS for name in table(kind).entries])
        raise UserError(
            f"vlbench help takes method=NAME, task=NAME, model=NAME or capability=NAME, not {word!r}. {hint}"
        )
    return alike


def _capability_facts(entry: Entry, cls: Any) -> list[tuple[str, str]]:
    """Who has it, who asks for it, and the samples that costs are stated for."""
    models = [e.name for e in table("models").entries.values() if entry.name in e.facts["capabilities"]]
    tasks = [e.name for e in table("tasks").entries.values() if entry.name == e.facts["capability"]]
    stated = [("MACs of", cls.stated.trained), ("times of", cls.stated.inferred)] if cls.stated else []
    return [("tasks", ", ".join(tasks)), ("models", ", ".join(models)), *stated]


def _print_entry(entry: Entry, cls: Any) -> None:
    print(f"{entry.name}: {entry.facts['title']}")
    if cls.__doc__:
        _wrapped(cls.__doc__, indent=2)
    facts = [(key, str(entry.facts[key])) for key in ("paper", "role") if entry.facts.get(key)]
    if entry.kind == "models":
        return _print_table(_card_facts(entry))
    if entry.kind == "capabilities":
        return _print_table(_capability_facts(entry, cls))
    if entry.kind == "tasks":
        facts += _task_facts(cls)
    if "links" in entry.facts:
        off = ", ".join(f"{link}=off" for link in entry.facts["links"][1:])
        facts.append(("chain", " -> ".join(entry.facts["links"]) + (f" ({off} drops a link)" if off else "")))
    if entry.facts.get("patterns"):
        facts.append(("patterns", ", ".join(entry.facts["patterns"])))
    _print_table(facts)
    parts = [table("methods").get(link) for link in entry.facts.get("links", ())] or [entry]
    shared = _shared_names(parts)
    for part in parts:
        if part.load().Options.model_fields:
            print(f"\n  {'options' if part is entry else part.name + ': ' + part.facts['title']}")
            _print_options(part, shared)
    _print_recipes(cls)
    return None


def _shared_names(parts: Sequence[Entry]) -> set[str]:
    """Options that need a prefix: those of several links, and those called like a word of every cell."""
    if parts[0].kind == "tasks":
        return set()
    from ..cell.spec import Words

    names = [name for part in parts for name in part.load().Options.model_fields]
    return {name for name in names if names.count(name) > 1 or name in Words.model_fields}


def _task_facts(cls: Any) -> list[tuple[str, str]]:
    roles = ", ".join(f"{role}: {split}" for role, split in cls.roles().items())
    return [
        ("capability", cls.capability),
        ("metrics", ", ".join(f"{name} ({'primary, ' * (name == cls.metric)}{d})" for name, d in cls.metrics.items())),
        ("splits", f"{roles}; split= takes {', '.join(cls.report_splits())}"),
    ]


def _card_facts(entry: Entry) -> list[tuple[str, str]]:
    facts = []
    for key, value in entry.facts.items():
        if key not in ("name", "title") and value not in ("", (), {}):
            facts.append((key.replace("_", " "), _plain(value)))
    return facts


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _print_options(part: Entry, shared: set[str]) -> None:
    # What a user sets first stands first: the target, then the rest as declared.
    fields = sorted(part.load().Options.model_fields.items(), key=lambda item: item[0] != "sparsity")
    rows = []
    for name, field in fields:
        text = _described(field)
        if name == "sparsity" and "n:m" in part.facts.get("patterns", ()):
            text += "; or a pattern like 2:4 (keeps 2 of 4)"
        if name in getattr(part.load(), "mini", {}):
            text += f"; in suite=mini {part.load().mini[name]}"
        rows.append((f"{part.name}.{name}=" if name in shared else f"{name}=", _default(field), text))
    names = max(len(row[0] + row[1]) for row in rows)
    _print_table([(name + default, text) for name, default, text in rows], indent=4, left=names)


def _default(field: Any) -> str:
    if field.is_required():
        return "..."
    return "" if field.default is None else str(field.default)


def _described(field: Any) -> str:
    """The description, and in brackets the range or the choices it does not name itself."""
    text = field.description or ""
    choices = get_args(field.annotation)
    if choices and all(isinstance(c, str) for c in choices):
        unnamed = any(c not in text for c in choices)
        legal = " | ".join(choices) if unnamed else ""
    else:
        legal = _bounds(field)
    legal = "; ".join(filter(None, (legal, "required" if field.is_required() else "")))
    return f"{text} ({legal})" if legal else text


def _bounds(field: Any) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return ", ".join(
        f"{sign}\N{NO-BREAK SPACE}{getattr(part, key)}"
        for part in field.metadata
        for key, sign in signs.items()
        if hasattr(part, key)
    )


def _print_recipes(cls: Any) -> None:
    """recipe=NAME and what it sets; for one that depends on the task, each of its answers."""
    recipes = getattr(cls, "recipes", {})
    if not recipes:
        return
    print("\n  recipes (without recipe=: mini in suite=mini, paper in suite=full, where there is one)")
    rows = []
    for name, recipe in recipes.items():
        for number, line in enumerate(_answers(recipe) if callable(recipe) else [_told(recipe)]):
            rows.append((f"recipe={name}" if number == 0 else "", line))
    _print_table(rows, indent=4)


def _answers(recipe: Any) -> list[str]:
    """What a recipe that is a function says for each task, at its target's default: first what it says for all of
    them, then the rest; alike answers on one line."""
    from ..cell.context import context_of

    values: dict[str, Mapping[str, Any]] = {}
    refused: dict[str, list[str]] = {}
    for name in table("tasks").entries:
        try:
            values[name] = recipe(context_of("full", name, None, 0.5))
        except UserError as error:
            refused.setdefault(str(error).replace(f" for task={name}", ""), []).append(name)  # alike, but for the name
    answers = list(values.values())
    shared = {k: v for k, v in answers[0].items() if all(a.get(k) == v for a in answers)} if answers else {}
    names_of: dict[str, list[str]] = {}
    for name, answer in values.items():
        names_of.setdefault(_told({k: v for k, v in answer.items() if k not in shared}), []).append(name)
    if len(names_of) == 1 and not refused:
        return [_told(answers[0])]
    every = [f"task=any: {_told(shared)}"] if shared else []
    return every + [f"task={', '.join(tasks)}: {text}" for text, tasks in (names_of | refused).items()]


def _told(recipe: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in recipe.items()) or "the defaults"


def _columns() -> int:
    return min(WIDTH, max(60, shutil.get_terminal_size((WIDTH, 24)).columns))


def _wrapped(text: str, indent: int) -> None:
    space = " " * indent
    print(textwrap.fill(" ".join(text.split()), _columns(), initial_indent=space, subsequent_indent=space))


def _print_table(rows: Sequence[tuple[str, str]], indent: int = 2, left: int = 0) -> None:
    """Two columns, the second wrapped below itself."""
    left = left or max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        head = f"{'':<{indent}}{name:<{left}}  "
        later = " " * (len(head) + (not name or "task=" in text[:5]) * 2)
        lines = textwrap.wrap(
            text, _columns(), initial_indent=head, subsequent_indent=later,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        print("\n".join(lines).replace("\N{NO-BREAK SPACE}", " ") or head.rstrip())
