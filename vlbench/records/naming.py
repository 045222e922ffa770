"""Which cell a record is of: its name has a digest of its identity, and its identity says what the record says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..disk.storage import digest
from .record import Link, Record

LONGEST = 180  # characters of a cell's name before seed and identity: a long chain's is no file name otherwise
SHA256 = re.compile("[0-9a-f]{64}")


def cell_id(parts: Sequence[str], seed: int | None, identity: Mapping[str, Any]) -> str:
    """Of suite, task, model, method and target."""
    text = re.sub(r"[^\w.+-]", "_", "-".join(word.replace(":", "of") for word in parts if word))
    return "-".join([text[:LONGEST], *([] if seed is None else [f"s{seed}"]), digest(identity)[:12]])


def unlike_its_cell(record: Record) -> str:
    """Why a record is not of the cell that it names; empty where it is."""
    parts = (record.suite, record.task, record.model, record.method, record.sparsity_target)
    if record.cell != cell_id(parts, record.seed, record.identity):
        return "its cell's name is not that of its identity, model, method and target"
    wrong = _contradicted(record)
    return f"it says one thing of its {', '.join(wrong)}, and its identity another" if wrong else ""


def _contradicted(record: Record) -> list[str]:
    """Parts of the identity that are not the record's."""
    identity = record.identity
    here = {
        "suite": record.suite,
        "split": [record.split, record.split_digest],
        "weights": record.weights_digest,
        "seed": record.seed,
        "label": record.label,
        "evaluation": record.evaluation,
    }
    wrong = [name for name, value in here.items() if name not in identity or identity[name] != value]
    try:
        fine = identity["task"][:2] == [record.task, record.task_version], _same_chain(identity["chain"], record.chain)
    except (KeyError, TypeError, ValueError):  # an identity of another program
        fine = (False, False)
    return [*wrong, *(name for name, good in zip(("task", "chain"), fine, strict=True) if not good)]


def _same_chain(recorded: Sequence[Any], chain: Sequence[Link]) -> bool:
    """Whether an identity's links are the record's, whose options name files where the identity has their digests."""
    if [(name, version, sorted(options)) for name, version, options in recorded] != [
        (link.name, link.version, sorted(link.options)) for link in chain
    ]:
        return False
    pairs = (
        (options[k], v) for (*_, options), link in zip(recorded, chain, strict=True) for k, v in link.options.items()
    )
    return all(a == b or (isinstance(a, str) and SHA256.fullmatch(a)) for a, b in pairs)
