"""What a source file declares, read without importing it."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .cards import read_cards
from .entry import Entry
from .kinds import DECORATORS, REQUIRED, RESERVED, Kind

OF_METRICS = ("metrics", "titles", "bounds")
LONGEST = 64  # characters of a name: those of task, model and methods are one folder's name together


def declared(file: Path, module: str, built_in: bool) -> Iterator[Entry]:
    """The entries a file declares, from its decorators. Raises ValueError where an argument is no literal."""
    for node in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
        for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            if isinstance(node, ast.ClassDef) and isinstance(decorator, ast.Call):
                called = _called(decorator)
                for name, facts in _facts(decorator, called, file.parent) if called in DECORATORS else ():
                    _refuse_name(DECORATORS[called], name, decorator.lineno)
                    literals = _literals(node) if called == "task" else {}
                    yield Entry(DECORATORS[called], name, file, module, node.name, built_in, {**literals, **facts})


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """What a task's class says in literals of its metrics: boards ask it of tasks whose file they do not import."""
    literals: dict[str, Any] = {}
    for line in node.body:
        if not isinstance(line, ast.Assign | ast.AnnAssign) or line.value is None:
            continue
        for target in line.targets if isinstance(line, ast.Assign) else [line.target]:
            if isinstance(target, ast.Name) and target.id in OF_METRICS:
                with contextlib.suppress(ValueError, TypeError):
                    literals[target.id] = ast.literal_eval(line.value)
    return literals


def _called(call: ast.Call) -> str:
    """method(...) and vlbench.method.method(...) are both "method"."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _facts(call: ast.Call, decorator: str, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, literal arguments) of a decorator: the name is its first argument, or each Card's name=; cards of a file
    lie in `folder`."""
    if decorator == "family":
        for card in call.args:
            if isinstance(card, ast.Constant) and isinstance(card.value, str):
                yield from ((str(facts["name"]), dict(facts)) for facts in read_cards(folder / card.value))
                continue
            if not isinstance(card, ast.Call):
                raise ValueError(f"line {card.lineno}: each argument of family() must be Card(...) or a file of cards")
            facts = _keywords(card, (*REQUIRED["family"], "name"))
            yield str(facts["name"]), facts
        return
    if not call.args or not isinstance(call.args[0], ast.Constant):
        raise ValueError(f"line {call.lineno}: the name must be a literal, the decorator's first argument")
    name = str(call.args[0].value)
    yield name, {**_keywords(call, REQUIRED[decorator]), "name": name}


def _keywords(call: ast.Call, required: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments. Raises ValueError where one is no literal, or a required one is missing."""
    facts: dict[str, Any] = {}
    for keyword in call.keywords:
        try:
            facts[str(keyword.arg)] = _literal(keyword.value)
        except (ValueError, TypeError):
            raise ValueError(f"line {keyword.value.lineno}: {keyword.arg or '**'}= must be a literal") from None
    lacking = [key for key in required if key not in facts]
    if lacking:
        raise ValueError(f"line {call.lineno}: {', '.join(key + '=' for key in lacking)} is missing")
    return facts


def _literal(node: ast.expr) -> Any:
    """A literal, or a call with literal keywords (ImageSpec(size=64)) as a dict of them."""
    if isinstance(node, ast.Call) and not node.args:
        return {str(k.arg): _literal(k.value) for k in node.keywords}
    return ast.literal_eval(node)


def _refuse_name(kind: Kind, name: str, line: int) -> None:
    """Names are words of the command line and parts of file names; a method's is also the prefix in METHOD.OPTION=."""
    legal = r"[A-Za-z0-9][\w-]*" if kind == "methods" else r"[A-Za-z0-9][\w.-]*"
    if not re.fullmatch(legal, name) or (kind == "methods" and name in RESERVED):
        raise ValueError(f"line {line}: {name[:LONGEST]!r} cannot be a name: use letters, digits, _ and -")
    if len(name) > LONGEST:
        raise ValueError(f"line {line}: the name {name[:LONGEST]}... is longer than {LONGEST} characters: shorten it")
