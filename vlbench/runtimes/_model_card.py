"""The hub's model card of a compressed model, made from the record of its run: metadata in YAML, then Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ..leaderboard.scales import titled
from ..model import Card
from ..records.record import Record

LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "BSD-3-Clause": "bsd-3-clause"}  # as the hub spells them


def model_card(record: Record, card: Card, *, loader: bool) -> str:
    """README.md. loader: whether a load.py lies in the folder."""
    parts = [*_metadata(record, card), *_body(record, card), *_loading(loader=loader), *_origin(record, card)]
    return "\n".join(parts) + "\n"


def _metadata(record: Record, card: Card) -> Iterator[str]:
    """The block between the dashes. Values are quoted as JSON, which YAML reads as it is."""
    yield "---"
    if card.licence:
        known = LICENCES.get(card.licence)
        yield f"license: {known}" if known else f"license: other\nlicense_name: {json.dumps(card.licence)}"
    if _on_the_hub(card):
        yield f"base_model: {json.dumps(card.checkpoint)}"
    yield f"tags: {json.dumps(['vlbench', 'pruning', record.method, record.pattern])}"
    yield "model-index:"
    yield f"- name: {json.dumps(record.cell)}"
    yield "  results:"
    yield f"  - task: {{type: {json.dumps(record.task)}}}"
    yield f"    dataset: {{name: {json.dumps(record.task)}, type: {json.dumps(record.task)}, split: {record.split}}}"
    yield "    metrics:"
    for name, value in record.metrics.items():
        yield f"    - {{type: {json.dumps(name)}, value: {value!r}}}"
    yield "---"


def _on_the_hub(card: Card) -> bool:
    return card.checkpoint.count("/") == 1 and not card.checkpoint.startswith((".", "/", "~"))


def _body(record: Record, card: Card) -> Iterator[str]:
    method = " -> ".join(link.name for link in record.chain)
    yield f"\n# {card.title}, {record.method} {record.sparsity_target}\n"
    yield (
        f"`{record.model}` compressed with `{method}` (pattern {record.pattern}): {record.sparsity:.1%} of its "
        f"prunable set is gone, which is {card.prunable}.\n"
    )
    title = titled(record.task, record.metric)
    interval = record.interval
    yield f"| | dense | this model |\n|---|---|---|\n| {title}, {record.task} {record.split} | {_dense(record)} | " + (
        f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}] |"
    )
    if record.vs_dense is not None:
        d = record.vs_dense
        yield f"| difference, paired | | {d.delta:+.2f} [{d.low:+.2f}, {d.high:+.2f}], {d.samples:,} samples |"
    p = record.parameters
    yield f"| parameters | {p.dense:,} | {p.total:,} ({p.nonzero:,} not zero) |"
    if record.macs and record.macs_dense:
        yield f"| MACs of the stated sample | {record.macs_dense:,} | {record.macs:,} |"
    yield "\nIntervals are 95 %, over clusters of samples.\n"
    if record.suite == "mini":
        yield "This is a tiny model of a procedural world: its numbers say nothing about a model of full size.\n"
    if not record.complete or record.flags:
        yield f"Flags of the run: {', '.join(record.flags) or 'not every sample was answered'}.\n"


def _seed(record: Record) -> str:
    return "" if record.seed is None else f"seed {record.seed}, "


def _dense(record: Record) -> str:
    return "" if record.vs_dense is None else f"{record.interval.value - record.vs_dense.delta:.2f}"


def _loading(*, loader: bool) -> Iterator[str]:
    yield "## Load it\n"
    yield '```python\nimport vlbench\nmodel = vlbench.load("FOLDER")  # model.net is the torch module\n```\n'
    if loader:
        yield "Or without vlbench, by the library's own classes:\n"
        yield "```python\nfrom FOLDER.load import load\nnet = load()\n```\n"


def _origin(record: Record, card: Card) -> Iterator[str]:
    yield "## How it was made\n"
    for link in record.chain:
        options = " ".join(f"{key}={value}" for key, value in link.options.items())
        yield f"* `{link.name}` (version {link.version[:12]}): `{options}`"
    yield f"* cell `{record.cell}`, {_seed(record)}{record.budget.steps:,} steps of training"
    yield f"* weights it started from: sha256 `{record.weights_digest}`" + (f" ({card.source})" if card.source else "")
    yield f"* evaluated samples: sha256 `{record.split_digest}`; every file is in `proof.json` with its digest"
    yield "\nPruning changes which answers a model gives, not only how many are right: evaluate it on your own data."
