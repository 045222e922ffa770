"""`vlbench list` and `vlbench help`: what there is, read from declarations."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from .errors import UserError, did_you_mean
from .plugins import Entry, Kind, table

KINDS: tuple[Kind, ...] = ("tasks", "models", "methods")


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
        width = max((len(e.name) for e in entries), default=0)
        for entry in entries:
            note = "" if entry.built_in else f"  ({entry.file})"
            print(f"  {entry.name:<{width}}  {entry.facts.get('title', '')}{_detail(entry)}{note}")
        for file, why in table(kind).broken.items():
            print(f"  ! {file} cannot be read: {why}")
        print()
    print("vlbench help method=NAME (task=, model=) tells more.")
    return None


def _facts(entry: Entry) -> dict[str, Any]:
    return {"name": entry.name, "file": str(entry.file), "built_in": entry.built_in, **entry.facts}


def _detail(entry: Entry) -> str:
    facts = entry.facts
    if entry.kind == "methods":
        told = " -> ".join(facts["links"]) if "links" in facts else ", ".join(facts.get("patterns", ()))
        return f"  [{told}]" if told else ""
    if entry.kind == "models":
        return f"  [{', '.join(facts['capabilities'])}; {facts.get('suite', 'full')}]"
    return f"  [{facts['capability']}; {facts['metric']}]"


def _print_runs(runs: Path, *, json: bool) -> None:
    found = []
    for folder in sorted(p for p in runs.glob("*") if (p / "cell.json").is_file()):
        state = "done" if (folder / "result.json").is_file() else "unfinished"
        found.append({"run": folder.name, "state": state})
    if json:
        print(jsonlib.dumps(found, indent=1))
        return
    for row in found:
        print(f"{row['state']:<11} {row['run']}")
    if not found:
        print(f"no runs in {runs}")


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


def print_help(given: Mapping[str, str]) -> None:
    """Print what one plug-in (method=, task= or model=) is and takes."""
    for key, kind in (("method", "methods"), ("task", "tasks"), ("model", "models")):
        if key in given:
            return _print_entry(table(kind).get(given[key]))  # type: ignore[arg-type]
    raise UserError("vlbench help takes method=NAME, task=NAME or model=NAME.")


def _print_entry(entry: Entry) -> None:
    cls = entry.load()
    print(f"{entry.name}: {entry.facts.get('title', '')}")
    if cls.__doc__:
        print(f"  {' '.join(cls.__doc__.split())}")
    if entry.facts.get("paper"):
        print(f"  paper: {entry.facts['paper']}")
    if entry.kind == "models":
        return _print_card(entry)
    if "links" in entry.facts:
        print(f"  chain: {' -> '.join(entry.facts['links'])}; LINK=off drops a link")
        for link in entry.facts["links"]:
            _print_options(table("methods").get(link).load().Options, f"{link}.")
    else:
        _print_options(cls.Options, "")
    for name, recipe in getattr(cls, "recipes", {}).items():
        values = "depends on task and target" if callable(recipe) else _told(recipe)
        print(f"  recipe={name}: {values}")
    return None


def _told(recipe: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in recipe.items()) or "the defaults"


def _print_card(entry: Entry) -> None:
    for key, value in entry.facts.items():
        if key not in ("name", "title"):
            print(f"  {key}: {value}")


def _print_options(options: Any, prefix: str) -> None:
    for name, field in options.model_fields.items():
        choices = get_args(field.annotation)
        literal = all(isinstance(c, str) for c in choices) and choices
        kind = " | ".join(choices) if literal else _bounds(field)
        default = "required" if field.is_required() else f"default {field.default}"
        print(f"  {prefix + name + '=':<28} {field.description or ''} ({kind + '; ' if kind else ''}{default})")


def _bounds(field: Any) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return ", ".join(
        f"{sign} {getattr(part, key)}" for part in field.metadata for key, sign in signs.items() if hasattr(part, key)
    )
