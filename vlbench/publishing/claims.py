"""What a record says beside its numbers: which cell it is of, with which options and recipe it was made, what a reader
is warned of, and that its data are those that everybody has."""

from __future__ import annotations

import json
from pathlib import Path

from ..cell.cell import Cell
from ..cell.roots import mini_world
from ..cell.worlds import refuse_other_world
from ..disk.storage import canonical, read_json
from ..errors import UserError
from ..plugins.table import table
from ..records.naming import unlike_its_cell
from ..records.record import Interval, Link, Record
from ..run.flags import flags_of, parity_flags
from ..run.outcome import link_record
from ..run.runner import card_of


def verify_name(run: Path, record: Record) -> None:
    """The cell's name, its identity and what stands beside it are of one cell."""
    file, beside = run / "result.json", run / "cell.json"
    if why := unlike_its_cell(record):
        _foreign(file, why)
    began = read_json(beside)
    if not isinstance(began, dict) or (began.get("cell"), began.get("identity")) != (record.cell, record.identity):
        _foreign(file, f"{beside} is of another cell")


def verify_origin(file: Path, record: Record, cell: Cell) -> None:
    """The record's identity is what this installation, with the data and weights here, gives."""
    here = json.loads(canonical(cell.identity))
    here["train"] = record.identity.get("train") and cell.train_digest
    here["seed"] = record.identity["seed"]
    here["chain"] = [[link.name, _version(link), link_told[2]]
                     for link, link_told in zip(record.chain, record.identity["chain"], strict=True)]  # fmt: skip
    wrong = sorted(name for name in {*here, *record.identity} if here.get(name) != record.identity.get(name))
    if wrong:
        _foreign(file, f"it was made with another version of vlbench, or of its {', '.join(wrong)}")


def _version(link: Link) -> str:
    entry = table("methods").get(link.name)
    return str(entry.digest() or entry.load().version_of(link.options))


def verify_chain(file: Path, record: Record, cell: Cell) -> None:
    """The links with every option, and the recipe, are what the run's own words give. cell: opened from them."""
    here = {
        "chain": [link_record(cell, link) for link in cell.spec.links],
        "recipe": cell.spec.recipe,
        "method": cell.spec.method,
        "label": cell.spec.words.label,
    }
    for name, value in here.items():
        if getattr(record, name) != value:
            raise inconsistent(str(file), f"its {name} is {getattr(record, name)}, by its words {value}")


def verify_data(cell: Cell) -> None:
    """The mini world that is here is what its generator makes. (Data of suite=full have their content in the identity,
    and a board compares rows of equal digests alone.)"""
    if cell.spec.words.suite == "mini":
        refuse_other_world(mini_world(cell.spec.task), cell.task.root)


def verify_flags(file: Path, record: Record, cell: Cell, dense: Interval) -> None:
    """No warning was taken out or added. cell: the dense one; dense: its value on these samples."""
    metric, card = record.metric, card_of(cell)
    wanted = [
        *flags_of(cell, card, [], record.parameters, record.n_tuned),
        *parity_flags(cell, card, metric, dense, None),
    ]
    if sorted(record.flags) != sorted(wanted):
        stated, right = (", ".join(flags) or "none" for flags in (record.flags, wanted))
        raise inconsistent(str(file), f"its flags are {stated}, and should be {right}")


def _foreign(file: Path, why: str) -> None:
    raise UserError(f"{file} is no result of this installation ({why}): run the cell again here.")


def inconsistent(where: str, why: str) -> UserError:
    return UserError(f"{where} is inconsistent ({why}): delete the run's folder and run again.")
