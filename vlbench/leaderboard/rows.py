"""Results -> rows: one row for each configuration, over its seeds.

Everything here is a pure function of the records: neither file order nor folder names nor the clock show in a
row.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from ..disk.storage import canonical, digest
from ..errors import UserError
from ..records.convergence import converged
from ..records.record import Link, Record, read_record
from ..records.statistics import bounded, over_seeds, row_interval, row_versus
from .consistency import refuse_contradictions
from .recomputed import Recomputation
from .scales import bounds_of

SHORT = 12  # characters of a digest in a table
MEASURED = {"metrics", "interval", "vs_dense", "parameters", "macs", "macs_dense", "scores", "complete"}
# Columns that are a record's own fields, equal over the seeds of a row.
TAKEN_OVER = (
    *("suite", "task", "split", "task_version", "model", "label", "method", "recipe", "pattern", "trained"),
    *("sparsity_target", "metric", "samples", "clusters"),
)
AGREED = 1e-9  # relative: what two processors may differ by in a statistic
BLIND = "without images"  # flag of a block that was evaluated so
PERTURBED = "perturb="  # flag of a block whose texts or images were perturbed: what perturb= said
# Flags of blocks whose written answers an evaluator's rule read, or whose options were ranked, which needs none.
RULE, DECODING = "rule=", "decoding=rank"
OWN_COLUMN = {"sparsity", "ratio", "pattern"}  # options that the column `options` need not repeat


@dataclass(frozen=True)
class Row:
    """A row of a board; the fields are its columns, in order. Rows are compared only within one `block`.

    options: those that differ between the rows of one method in one block. sparsity: realised fraction of the
    prunable set; model_reduction, macs_reduction: of the whole model. parameters, nonzero, steps,
    samples_seen: means over seeds; a search's candidates count. n_tuned: settings that were chosen between on
    select. converged: whether every seed has (vlbench/records/convergence.py), None where nothing was trained. value ..
    spread: percent points; low, high: 95 % interval (None where one cluster allows none). delta: paired difference to
    the dense model. p: two-sided, raw. metrics: the others, means over seeds. *_digest, config: first 12 characters.
    """

    suite: str
    task: str
    split: str
    task_version: int
    model: str
    label: str
    method: str
    recipe: str
    options: str
    pattern: str
    trained: bool
    sparsity_target: str
    sparsity: float
    model_reduction: float
    parameters: int
    nonzero: int
    macs: int | None
    macs_reduction: float | None
    metric: str
    value: float
    low: float | None
    high: float | None
    seeds: int
    spread: float | None
    delta: float | None
    delta_low: float | None
    delta_high: float | None
    p: float | None
    metrics: str
    samples: int
    clusters: int
    steps: int
    samples_seen: int
    n_tuned: int
    converged: bool | None
    flags: str
    split_digest: str
    weights_digest: str
    evaluation: str
    config: str

    @property
    def dense(self) -> bool:
        """True for the model that the others are compared with."""
        return self.delta is None and not self.trained and self.sparsity == 0

    @property
    def block(self) -> tuple[str | int, ...]:
        """What rows must share to be compared."""
        names = (self.suite, self.task, self.model, self.label, self.split, self.task_version)
        return (*names, self.split_digest, self.weights_digest, self.evaluation)

    @property
    def settings(self) -> list[str]:
        """What of the evaluation a heading must say."""
        return [
            flag for flag in self.flags.split(";") if flag in (BLIND, DECODING) or flag.startswith((RULE, PERTURBED))
        ]

    @property
    def section(self) -> str:
        """Heading within a block."""
        return "dense" if self.dense else f"{self.pattern}, {'trained' if self.trained else 'untrained'}"


COLUMNS = tuple(field.name for field in fields(Row))


def load_results(folder: Path, pattern: str = "**/*.json", scores: bool = True) -> list[Record]:
    """All result files under `folder` (of runs/: pattern "*/result.json"), ordered by their content alone. Without
    `scores` the records have digests of them only, after their numbers were computed again from them: those of 10,000
    results of ADE20K would take 1.2 GB.

    Raises UserError naming a file that is damaged or contradicts itself or its dense model's, or two files that say
    different things about one cell. A cell that stands there twice with the same numbers counts once.
    """
    by_cell: dict[str, tuple[Path, Record]] = {}
    recomputation = Recomputation()
    for path in sorted(folder.glob(pattern), key=lambda p: p.relative_to(folder).as_posix()):
        record = read_record(path)
        if not scores:
            recomputation.see(path, record)
            record = record.model_copy(update={"scores": digest(record.scores), "sample_clusters": ""})
        first, earlier = by_cell.setdefault(record.cell, (path, record))
        if earlier is record:
            continue
        if not agree(earlier, record):
            raise UserError(f"{first} and {path} are different results of cell {record.cell}: delete the wrong one.")
        if _text(record) < _text(earlier):  # which of the two is kept must not depend on their names
            by_cell[record.cell] = (path, record)
    refuse_contradictions(by_cell.values())
    return sorted((record for _, record in by_cell.values()), key=_order_of_records)


def _text(record: Record) -> str:
    return canonical(record.model_dump(mode="json"))


def merge(committed: Iterable[Record], local: Iterable[Record]) -> tuple[list[Record], set[str]]:
    """Committed results and the user's own, and the `config` of each row that has an own one (to be marked).

    A local result replaces the committed one of the same cell, or of the same configuration and seed: the
    user asked for what was measured here. Of two such local ones (another batch size, say) the later stays.
    """
    by_key = {_key(record): record for record in local if ranked(record)}
    cells = {record.cell for record in by_key.values()}
    others = [r for r in committed if r.cell not in cells and _key(r) not in by_key]
    return [*others, *by_key.values()], {config[:SHORT] for config, _ in by_key}


def rows(records: Iterable[Record]) -> list[Row]:
    """One row for each configuration over its seeds, in a board's order. Incomplete and limited cells are
    left out.

    Raises UserError where two cells claim the same configuration and seed with different numbers.
    """
    return [row for row, _ in rows_of(records)]


def rows_of(records: Iterable[Record]) -> list[tuple[Row, list[Record]]]:
    """The rows as `rows` gives them, each with its records, by seed."""
    groups: defaultdict[str, dict[str, Record]] = defaultdict(dict)
    for record in sorted(filter(ranked, records), key=_order_of_records):
        config, seed = _key(record)
        earlier = groups[config].setdefault(seed, record)
        if earlier is not record and not agree(earlier, record):
            raise UserError(
                f"cells {earlier.cell} and {record.cell} differ, for one configuration and seed "
                f"({_differing(earlier.identity, record.identity)}): delete the outdated one."
            )
    over = {config: list(by_seed.values()) for config, by_seed in groups.items()}
    options = _options({config: same[0] for config, same in over.items()})
    rows_over_seeds = [(_row(config, same, options[config]), same) for config, same in over.items()]
    return sorted(rows_over_seeds, key=lambda pair: _order_of_rows(pair[0]))


def row_alone(record: Record) -> Row:
    """The row of one record by itself, also of one that enters no board."""
    config = digest(record.configuration())
    return _row(config, [record], _options({config: record})[config])


def ranked(record: Record) -> bool:
    """False for a cell that must not enter a board: samples failed, or only some were asked for."""
    return record.complete and "limit" not in record.flags


def agree(a: Record, b: Record) -> bool:
    """Whether two runs of one cell measured the same; they may differ in time, place and wording. Statistics may differ
    by AGREED of themselves: another processor adds in another order (a p of 2e-73 differed by 1e-12 of it)."""
    return _near(*(record.model_dump(mode="json", include=MEASURED) for record in (a, b)))


def _near(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_near(a[k], b[k]) for k in a)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=AGREED, abs_tol=AGREED)
    return bool(a == b)


def _key(record: Record) -> tuple[str, str]:
    return digest(record.configuration()), str(record.seed)


def _differing(a: dict[str, Any], b: dict[str, Any]) -> str:
    names = sorted(k for k in {*a, *b} if a.get(k) != b.get(k))
    return f"they differ in {', '.join(names)}" if names else "their identities are equal"


def _row(config: str, same: Sequence[Record], options: str) -> Row:
    first = same[0]
    return Row(
        **{name: getattr(first, name) for name in TAKEN_OVER},
        **_costs(same),
        **_quality(same),
        options=options,
        metrics=" ".join(f"{name}={value:.4f}" for name, value in other_metrics(same).items()),
        flags=";".join(sorted({flag for record in same for flag in record.flags} | _settings(first))),
        split_digest=first.split_digest[:SHORT],
        weights_digest=first.weights_digest[:SHORT],
        evaluation=digest(first.evaluation)[:SHORT],
        config=config[:SHORT],
    )


def _settings(record: Record) -> set[str]:
    """What the numbers of a block with other evaluation settings must not be read without: that it saw no images, or
    perturbed samples, and whose rule read its answers (ranked options are read by none)."""
    rule = record.evaluation.get("rule")
    ranked_options = record.evaluation.get("decoding") == "rank"
    reading = {DECODING if ranked_options else f"{RULE}{rule}"} if rule else set()
    perturbation = {f"{PERTURBED}{text}"} if (text := record.evaluation.get("perturb")) else set()
    return perturbation | ({BLIND, *reading} if record.evaluation.get("blind") else reading)


def _quality(same: Sequence[Record]) -> dict[str, Any]:
    """The metric over seeds, and against the dense model where every seed was compared with it."""
    whole = row_interval([r.interval for r in same])
    if (scale := bounds_of(same[0].task)) is not None:
        whole = bounded(whole, *scale)
    seeds = over_seeds([r.interval.value for r in same])
    ticks = [converged(r) for r in same]
    columns: dict[str, Any] = {"value": whole.value, "seeds": seeds.n, "spread": seeds.spread}
    columns["converged"] = None if None in ticks else all(ticks)
    columns |= {"low": whole.low, "high": whole.high} if whole.clusters > 1 else {"low": None, "high": None}
    differences = [r.vs_dense for r in same if r.vs_dense is not None]
    if len(differences) < len(same):
        return columns | dict.fromkeys(("delta", "delta_low", "delta_high", "p"))
    versus = row_versus(differences)
    ends = (versus.low, versus.high) if versus.clusters > 1 else (None, None)
    return columns | {"delta": versus.delta, "delta_low": ends[0], "delta_high": ends[1], "p": versus.p}


def other_metrics(same: Sequence[Record]) -> dict[str, float]:
    """What was measured besides the primary metric, for every seed of a row: metric -> mean, in the task's order."""
    names = [name for name in same[0].metrics if name != same[0].metric]
    return {name: fmean(r.metrics[name] for r in same) for name in names if all(name in r.metrics for r in same)}


def _costs(same: Sequence[Record]) -> dict[str, Any]:
    """Size and training budget, means over seeds (a global allocation keeps other units with another
    seed)."""
    macs = [(r.macs, r.macs_dense) for r in same if r.macs is not None and r.macs_dense]
    return {
        "sparsity": fmean(r.sparsity for r in same),
        "model_reduction": fmean(1 - r.parameters.nonzero / r.parameters.dense for r in same),
        "parameters": round(fmean(r.parameters.total for r in same)),
        "nonzero": round(fmean(r.parameters.nonzero for r in same)),
        "macs": round(fmean(m for m, _ in macs)) if len(macs) == len(same) else None,
        "macs_reduction": fmean(1 - m / dense for m, dense in macs) if len(macs) == len(same) else None,
        "steps": round(fmean(r.budget.steps for r in same)),
        "samples_seen": round(fmean(r.budget.samples_seen for r in same)),
        "n_tuned": max(r.n_tuned for r in same),
    }


def _options(firsts: Mapping[str, Record]) -> dict[str, str]:
    """Configuration -> the options that tell it from the other rows of its method, recipe and block."""
    groups: defaultdict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for config, record in firsts.items():
        block = record.configuration() | {
            "chain": [link.name for link in record.chain],
            "recipe": record.recipe,
        }
        # Where an adapter has filled all zeros, no other column tells what was asked for.
        groups[digest(block)][config] = _flat(record.chain, set() if record.pattern == "dense" else OWN_COLUMN)
    texts = {}
    for group in groups.values():
        names = sorted({name for options in group.values() for name in options})
        varying = [n for n in names if len({options.get(n) for options in group.values()}) > 1]
        for config, options in group.items():
            texts[config] = " ".join(f"{n}={options[n]}" for n in varying if n in options)
    return texts


def _flat(chain: Sequence[Link], without: Collection[str]) -> dict[str, str]:
    """Option -> its value as text; names are as one writes them in a command: with the link where several have one."""
    parts = [
        (link.name, name, value if isinstance(value, str) else canonical(value))
        for link in chain
        for name, value in {**link.options, "version": link.version}.items()
        if name not in without
    ]
    times = Counter(name for _, name, _ in parts)
    return {name if times[name] == 1 else f"{link}.{name}": value for link, name, value in parts}


def _order_of_records(record: Record) -> tuple[str | int, ...]:
    names = (record.suite, record.task, record.model, record.method)
    return (*names, -1 if record.seed is None else record.seed, record.cell)


def _order_of_rows(row: Row) -> tuple[str | int | float | bool, ...]:
    # The dense model, then its trained control, then the patterns by name.
    place = (not row.dense, row.pattern != "dense", row.pattern, row.trained)
    return (*row.block, *place, row.method, row.options, row.sparsity, row.config)
