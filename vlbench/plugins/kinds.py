"""What kinds of plug-in there are, where they lie and what their decorators must say."""

from __future__ import annotations

from typing import Literal

Kind = Literal["models", "tasks", "methods", "runtimes", "capabilities"]


FOLDERS: dict[Kind, str] = {
    "models": "registry",
    "tasks": "tasks",
    "methods": "methods",
    "runtimes": "runtimes",
    "capabilities": "capabilities",
}
SINGULAR: dict[Kind, str] = {
    "models": "model",
    "tasks": "task",
    "methods": "method",
    "runtimes": "runtime",
    "capabilities": "capability",
}
# Folders of a workspace besides its own in which a kind is looked for: a capability comes with its family or task.
ALSO_IN: dict[Kind, tuple[Kind, ...]] = {"capabilities": ("models", "tasks")}


DECORATORS: dict[str, Kind] = {
    "family": "models",
    "task": "tasks",
    "method": "methods",
    "chain": "methods",
    "runtime": "runtimes",
    "capability": "capabilities",
}


# What the engine reads of a declaration without importing the file.
REQUIRED: dict[str, tuple[str, ...]] = {
    "family": ("title", "capabilities", "checkpoint", "image"),
    "task": ("title", "capability", "metric", "version"),
    "method": ("title", "role"),
    "chain": ("title", "links"),
    "runtime": ("title",),
    "capability": ("title",),
}


_DECORATOR: dict[Kind, str] = {
    "models": "@family(Card(...))",
    "tasks": "@task(...)",
    "methods": "@method(...)",
    "runtimes": "@runtime(...)",
    "capabilities": "@capability(...)",
}


# Prefixes of words (task.decoding=, evaluation.batch_size=): no link of a chain may be called so.
RESERVED = ("task", "evaluation")
