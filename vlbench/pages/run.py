"""The local page of one finished run: what it is, how it came about, and samples to look at. Never committed: it shows
images of the data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..capability import capability_of
from ..disk.storage import write_text
from ..errors import UserError
from ..images.maps import LabelMap, read_map
from ..leaderboard.scales import titled
from ..leaderboard.tables import count, difference, estimate, fixed, p_value, reduced
from ..plots.runs import Run, open_run
from ..records.record import Record
from .curves import curve
from .document import asset, escaped, filled, source_hash
from .samples import MOST, Kind, Shown, all_samples, chosen
from .thumbnails import class_map, thumbnail

FILE = "page.html"
HEADINGS: dict[Kind, str] = {
    "lost": "Lost to pruning: the dense model was right, or better",
    "gained": "Gained: better than the dense model",
    "same": "As good as the dense model",
    "alone": "Samples",
}
LONGEST = 12  # members of a list that are told
CAPTIONS = 5  # of an image that has more: what retrieval is measured on


def write_page(folder: Path) -> tuple[Path, str]:
    """Write page.html into a finished run's folder; its path, and why it shows no samples (empty where it does).

    Raises UserError where the run is not finished or its files are damaged.
    """
    run = open_run(folder)
    try:
        task, rows = all_samples(folder, run.record)
        samples, why = _samples(rows, task.capability), ""
    except UserError as error:
        samples, why = "", str(error).splitlines()[0]
    missing = f"<p>No samples: {escaped(why)}</p>" if why else ""
    style = asset("style.css")
    record = run.record
    parts = (_result(record), _curves(run), _configuration(record), samples or missing)
    text = filled(
        asset("run.html"),
        {
            "TITLE": escaped(record.cell),
            "NOTE": escaped(f"{record.suite} / {record.task} / {record.model} / {record.method}, split {record.split}"),
            "STYLE": style,
            "STYLE_HASH": source_hash(style),
            "MAIN": "".join(parts),
        },
    )
    write_text(folder / FILE, text)
    return folder / FILE, why


def _result(record: Record) -> str:
    spread, versus, size = record.interval, record.vs_dense, record.parameters
    whole = 1 - size.nonzero / size.dense
    saved = 1 - record.macs / record.macs_dense if record.macs is not None and record.macs_dense else None
    facts = {
        titled(record.task, record.metric): estimate(spread.value, spread.low, spread.high, 2),
        "vs dense (paired)": "" if versus is None else difference(versus.delta, versus.low, versus.high, 2),
        "p": "" if versus is None else p_value(versus.p),
        **{
            titled(record.task, name): fixed(value, 2)
            for name, value in record.metrics.items()
            if name != record.metric
        },
        "samples": f"{record.samples:,} in {record.clusters:,} clusters",
        "sparsity": f"{fixed(100 * record.sparsity, 1)}% of the prunable set ({record.pattern})",
        "parameters": reduced(size.nonzero, whole),
        "MACs": reduced(record.macs, saved),
        "trained": f"{record.budget.steps:,} steps, {count(record.budget.samples_seen)} samples"
        if record.trained
        else "no",
        "flags": ", ".join(record.flags),
    }
    towers = "".join(
        f'<div class="tower"><span>{escaped(name)}</span><meter min="0" max="1" value="{gone:.4f}" '
        f'aria-label="{escaped(name)}: removed"></meter><span>{fixed(100 * gone, 1)}%</span></div>'
        for name, gone in size.towers.items()
    )
    return f'<h2>Result</h2>{_list(facts)}<p class="soft">removed of each tower&#x27;s prunable weights</p>{towers}'


def _curves(run: Run) -> str:
    """Loss of every link that trained, and the ratio of every link that moved gates."""
    drawn = []
    for link in run.record.chain:
        log = run.log.get(link.name, {})
        losses, updates = log.get("loss", []), log.get("updates", [])
        if losses:
            drawn.append(curve(f"{link.name}: training loss", range(len(losses)), losses))
        if updates:
            drawn.append(
                curve(f"{link.name}: ratio aimed at (%)", [u[0] for u in updates], [100 * u[1] for u in updates])
            )
    return f'<h2>Curves</h2><div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _configuration(record: Record) -> str:
    parts = [f"<h3>{escaped(link.name)}</h3>{_list(link.options)}" for link in record.chain]
    where = {k: v for k, v in record.provenance.items() if not isinstance(v, dict)}
    where |= record.provenance.get("packages", {})
    rest = {"seed": record.seed, "recipe": record.recipe, **record.evaluation}
    phases = {f"{name} (s)": value for name, value in record.phases.items()}
    return (
        f"<h2>Configuration</h2>{''.join(parts)}<h3>evaluation</h3>{_list(rest)}"
        f"<details><summary>provenance and seconds by phase</summary>{_list({**where, **phases})}</details>"
    )


def _list(values: Mapping[str, Any]) -> str:
    lines = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{escaped(_text(value))}</dd></div>"
        for name, value in values.items() if value not in (None, "")
    )  # fmt: skip
    return f"<dl>{lines}</dl>"


def _samples(rows: Sequence[Shown], capability: str) -> str:
    shown = chosen(rows)
    kinds = Counter(answered.kind for answered in rows)
    parts = []
    if kinds["alone"] < len(rows):
        sentence = (
            f"of {len(rows):,} samples the dense model is better on {kinds['lost']:,} and worse on {kinds['gained']:,}"
        )
        parts.append(f'<p class="soft">Of each sample alone, {sentence}; at most {MOST} are shown.</p>')
    for kind, heading in HEADINGS.items():
        members = [answered for answered in shown if answered.kind == kind]
        if members:
            cards = "".join(_card(answered, capability) for answered in members)
            count_told = f"{len(members)} of {kinds[kind]:,}"
            parts.append(f'<h2>{heading} <span class="soft">{count_told}</span></h2><div class="samples">{cards}</div>')
    return "".join(parts)


def _card(answered: Shown, capability: str) -> str:
    """One sample: its images, what was asked, the right answer, and the two models'."""
    sample = answered.sample
    names = ["image"] if len(sample.images) == 1 else [f"image {i + 1}" for i in range(len(sample.images))]
    pictures = [thumbnail(path, name) for path, name in zip(sample.images, names, strict=True)]
    parts = [f"<p>{escaped(text)}</p>" for text in (sample.text, *sample.texts[:CAPTIONS]) if text]
    if not sample.texts:  # else the texts are what is right
        parts.append(_answer("right", _undisputed(sample.target), "", capability))
    if answered.theirs is not None:
        parts.append(
            _answer(
                f"dense {_points(answered.dense)}",
                answered.theirs["prediction"],
                "good" * (answered.kind == "lost"),
                capability,
            )
        )
    mark = {"lost": "bad", "gained": "good"}.get(answered.kind, "")
    parts.append(_answer(f"this run {_points(answered.value)}", answered.line["prediction"], mark, capability))
    return f'<article class="sample">{"".join((*pictures, *parts))}<p class="soft">{escaped(sample.id)}</p></article>'


def _undisputed(target: Any) -> Any:
    """The one answer that has the whole score, without it: "4" rather than "4 1.0"."""
    whole = isinstance(target, Mapping) and list(target.values()) == [1.0]
    return next(iter(target)) if whole else target


def _points(value: float | None) -> str:
    return "" if value is None else f"({value:.0f})"


def _answer(who: str, said: Any, mark: str, capability: str) -> str:
    """A line, or for a segmentation its map."""
    if said is None:
        return ""
    if isinstance(said, LabelMap):
        return class_map(read_map(said), who)
    if (drawn := capability_of(capability).class_map(said)) is not None:
        return class_map(drawn, who)
    return f'<p class="{mark}"><b>{escaped(who)}</b>: {escaped(_text(said))}</p>'


def _text(value: Any) -> str:
    """A target, a prediction or an option, for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        if len(value) == 1 and not isinstance(next(iter(value.values())), float):
            return _text(next(iter(value.values())))  # {"answer": "yes"}
        return "; ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        times = Counter(map(_text, value))
        reasons = [text if n == 1 else f"{text} (x{n})" for text, n in times.items()]
        return ", ".join(reasons[:LONGEST]) + (" ..." if len(reasons) > LONGEST else "")
    return str(value)
