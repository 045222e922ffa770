"""`vlbench time RUN`: the measured costs of finished runs, kept in their cost.json beside those of other devices."""

from __future__ import annotations

import fcntl
import json as jsonlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compression.saved import is_saved, load_model, open_checkpoint
from ..disk.storage import read_json, write_json
from ..errors import UserError
from ..images.folder import folder_image
from ..model import Model
from ..plugins.table import table
from ..records.record import Record, read_local
from .accelerated import accelerated, line, refuse_pattern
from .sample import stated
from .timing import How, measure

if TYPE_CHECKING:
    from ..machine.ui import Screen

SCHEMA_VERSION = 1
NUMBERS = ("p50 ms", "p95 ms", "", "samples/s", "batch", "", "MB at 1", "at batch")
MEMORY = 2  # columns of memory at the end
DIGEST = 12  # characters of a cell's name that tell it from all others
# runtime, version: of a runtime in vlbench/runtimes/; an entry without them is of torch.
KEY = ("device", "torch", "precision", "threads", "compiled", "runtime", "version")


def time_runs(folders: Sequence[Path], how: How, screen: Screen, *, json: bool, accelerate: str = "") -> None:
    """Measure each run, write its cost.json and print a table. accelerate: see accelerated.py."""
    entries = []
    records = [_record(folder) for folder in folders]
    if accelerate:
        for record in records:
            refuse_pattern(accelerate, record.pattern, record.cell)
    for folder, record in zip(folders, records, strict=True):
        model = open_run(folder, record)
        capability = table("tasks").get(record.task).facts["capability"]
        entry = measure(model, capability, how, screen.progress)
        if accelerate:
            masked = load_model(folder / "model")[1].masks
            entry["accelerated"] = accelerated(model, masked, capability, how, entry["throughput"]["batch"])
        model.net.to("meta")  # its memory is free for the next one
        keep(folder / "cost.json", record, capability, entry)
        entries.append((record, entry))
        screen.say(f"wrote {folder / 'cost.json'}")
    if json:
        print(jsonlib.dumps([{"cell": record.cell, **entry} for record, entry in entries], indent=1))
    else:
        print_table(entries)


def _record(folder: Path) -> Record:
    if not (folder / "result.json").is_file():
        raise UserError(f"{folder} is no finished run (`vlbench list runs` shows them): costs are of a model it made.")
    return read_local(folder)


def open_run(folder: Path, record: Record) -> Model:
    """The model that a finished run evaluated: its compressed one, or the dense one that it took."""
    if is_saved(folder / "model"):
        return load_model(folder / "model")[0]
    from ..plugins.workspace import named_roots
    from ..tensors.locate import checkpoint_digest, locate

    entry = table("models").get(record.model)
    cls = entry.load()
    content = read_json(folder / "cell.json")  # "given" has paths as they are found from every folder
    stated = content.get("given", {}).get("checkpoint") or content["words"]["checkpoint"]
    checkpoint = stated or entry.facts["checkpoint"]
    weights = locate(checkpoint, entry.facts.get("revision", "main"), named_roots())
    if checkpoint_digest(weights) != record.weights_digest:
        raise UserError(f"{weights} are not the weights that {folder} was made with: run its command again.")
    card = next(card for card in cls.cards if card.name == entry.name)
    if "preprocessing" in record.evaluation:
        card = replace(card, image=folder_image(card.image, weights))
    return open_checkpoint(cls, card, weights)[0]


def keep(file: Path, record: Record, capability: str, entry: dict[str, Any]) -> None:
    """Write the entry into cost.json, in the place of an older one of the same device, torch, precision, threads and
    runtime."""
    with _alone(file.parent):
        content = read_json(file) if file.is_file() else {}
        if content and content.get("schema_version") != SCHEMA_VERSION:
            raise UserError(f"{file} is of another version ({content.get('schema_version')!r}): delete it.")
        others = [old for old in content.get("measured", []) if any(old.get(key) != entry.get(key) for key in KEY)]
        value = {
            "schema_version": SCHEMA_VERSION,
            "cell": record.cell,
            "capability": capability,
            "sample": stated(capability).inferred,
            "measured": sorted([*others, entry], key=lambda old: [str(old.get(key, "")) for key in KEY]),
        }
        write_json(file, value)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes (a GPU's and a CPU's) may end at once, and each keeps what the other wrote."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _labels(records: Sequence[Record]) -> list[str]:
    """The names of rows as a board has them, with their sparsity; where two are alike, what tells them apart."""
    from ..leaderboard.rows import row_alone
    from ..leaderboard.tables import name, percent

    labels = [f"{name(row)} {percent(row.sparsity)}" if row.sparsity else name(row) for row in map(row_alone, records)]
    for more in ("model", "task", "seed", "cell"):
        values = [f"seed={record.seed}" if more == "seed" else str(getattr(record, more)) for record in records]
        values = [value[-DIGEST:] for value in values] if more == "cell" else values
        alike = [{value for value, other in zip(values, labels, strict=True) if other == label} for label in labels]
        labels = [
            f"{label} {value}" if len(group) > 1 else label
            for label, value, group in zip(labels, values, alike, strict=True)
        ]
    return labels


def print_table(entries: Sequence[tuple[Record, dict[str, Any]]]) -> None:
    """One row a run; ratios are to the first one, which was measured in the same minutes. A terminal that is too narrow
    loses the columns of memory, and says so."""
    from rich.console import Console

    console = Console()
    labels, first = _labels([record for record, _ in entries]), entries[0][1]
    served = any("runtime" in entry for _, entry in entries)
    heads = ["run", *["runtime"] * served, *NUMBERS]
    lines = [
        [label, *[entry.get("runtime", "torch")] * served, *_numbers(entry, first)]
        for label, (_, entry) in zip(labels, entries, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    narrow = console.is_terminal and sum(widths) + 2 * len(widths) - 2 > console.width
    kept = len(heads) - MEMORY * narrow
    for number, texts in enumerate([heads, *lines]):
        cells = [text.rjust(width) for text, width in zip(texts, widths, strict=True)]
        cells[0] = texts[0].ljust(widths[0])
        style = "bold" if number == 0 else None
        console.print("  ".join(cells[:kept]), style=style, markup=False, highlight=False, soft_wrap=True)
    notes = [f"{first['device']}, torch {first['torch']}, {first['precision']}, {first['threads']} threads"]
    notes[0] += ", compiled" * first["compiled"]
    notes.append("±: half the interquartile range. Memory: " + first["memory_is"])
    if narrow:
        notes.append(f"not shown at {console.width} columns: {', '.join(heads[-MEMORY:])}; cost.json has them")
    for note in notes:
        console.print(note, style="dim", highlight=False, soft_wrap=True)
    for label, (_, entry) in zip(labels, entries, strict=True):
        if kernels := entry.get("accelerated"):
            console.print(f"{label}: 2:4: {line(kernels)}", highlight=False, soft_wrap=True)
    capabilities = dict.fromkeys(table("tasks").get(record.task).facts["capability"] for record, _ in entries)
    for capability in capabilities:
        console.print(f"{capability}: {stated(capability).inferred}", style="dim", highlight=False, soft_wrap=True)


def _numbers(entry: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """The cells of one run under NUMBERS."""
    latency, rate, memory = entry["latency_ms"], entry["throughput"], entry["memory_mb"]
    faster = (first["latency_ms"]["p50"] / latency["p50"], rate["per_second"] / first["throughput"]["per_second"])
    ratios = ["", ""] if entry is first else [f"x{ratio:.2f}" for ratio in faster]
    spread = (rate["q75"] - rate["q25"]) / rate["per_second"]
    return [
        f"{latency['p50']:.4g} ±{(latency['q75'] - latency['q25']) / 2:.2g}", f"{latency['p95']:.4g}", ratios[0],
        f"{rate['per_second']:.4g} ±{50 * spread:.1f}%", str(rate["batch"]), ratios[1],
        *("" if memory[at] is None else f"{memory[at]:,.0f}" for at in ("batch_1", "saturated")),
    ]  # fmt: skip
