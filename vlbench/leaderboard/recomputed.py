"""Numbers of committed results, computed again from the scores that are committed with them.

An edit by hand can be consistent with itself (a better metric, its interval moved, the difference to the dense model
moved as much); it is not consistent with the score of every sample. 10,000 results are checked in seconds: a result is
a few operations on arrays, and the cluster numbers of a split are unpacked once.

What is not computed again: the intervals of corpus metrics (10,000 bootstrap draws each), metrics beside the primary
one (their groups of samples are not committed), and everything that needs the model. `vlbench submit` does all that.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..plugins.table import table
from ..records.naming import unlike_its_cell
from ..records.record import Record, unpack_cluster_numbers, unpack_scores
from ..records.statistics import clustered_mean, t_interval, two_sided
from ..task import Task
from .consistency import board_of, contradiction, is_dense

Array = NDArray[np.float64]

# Percent points. Scores are committed to 1e-6, so that their mean is within 5e-5 of what was measured.
SAME = 1e-4
OF_SUMS = 1e-5  # relative: the statistics of corpus metrics are committed in single precision
OF_P = 1e-2  # relative: a p of 1e-70 follows the standard error's rounding


class Recomputation:
    """Looks at every result of a folder. A pruned one whose dense model has not come yet waits for it; only the packed
    text of its scores is kept meanwhile."""

    def __init__(self) -> None:
        self._dense: dict[Hashable, Array] = {}
        self._waiting: defaultdict[Hashable, list[tuple[Path, Record]]] = defaultdict(list)
        self._sizes: dict[Hashable, tuple[Path, int | None]] = {}

    def see(self, path: Path, record: Record) -> None:
        """Raise UserError, naming the file and the number, for a result that is not what its scores say."""
        scores = _unpacked(path, record)
        if why := contradiction(record, None):
            raise _contradiction(path, why)
        for why in (*_of_cell(record), *_of_scores(record, scores), *_of_counts(record), *self._of_board(path, record)):
            raise _contradiction(path, why)
        board = board_of(record)
        if is_dense(record):
            self._dense[board] = scores
            for other, waiting in self._waiting.pop(board, []):
                _compare_with_dense(other, waiting, unpack_scores(waiting.scores), scores)
        elif record.vs_dense is not None and board in self._dense:
            _compare_with_dense(path, record, scores, self._dense[board])
        elif record.vs_dense is not None:
            self._waiting[board].append((path, record))

    def _of_board(self, path: Path, record: Record) -> Iterator[str]:
        """Sizes of the dense model are the same in all results of one model and task."""
        model = (record.task, record.task_version, record.model, record.weights_digest)
        sizes = record.parameters
        for what, size in (("parameters", sizes.dense), ("prunable", sizes.prunable), ("MACs", record.macs_dense)):
            first, theirs = self._sizes.setdefault((*model, what), (path, size))
            if size is not None and theirs is not None and size != theirs:
                yield f"its dense model has {size} {what}, and {theirs} in {first.name}"


def _unpacked(path: Path, record: Record) -> Array:
    try:
        return unpack_scores(record.scores)
    except UserError as error:
        raise _contradiction(path, str(error).rstrip(".")) from None


def _contradiction(path: Path, why: str) -> UserError:
    return UserError(f"{path} contradicts itself ({why}): restore it, or submit its run again.")


def _of_cell(record: Record) -> Iterator[str]:
    """What the record says otherwise than its identity, of which its cell's name has the digest, and otherwise than it
    says elsewhere."""
    if why := unlike_its_cell(record):
        yield why
    if record.trained != (record.budget.steps > 0):
        yield f"its model was {'' if record.trained else 'not '}trained, it says, in {record.budget.steps} steps"
    if record.clusters != record.interval.clusters:
        yield f"it has {record.clusters} clusters, and {record.interval.clusters} with its interval"
    if both := sorted(record.unmeasured.keys() & record.metrics.keys()):
        yield f"{both[0]} is among its metrics and not measured"


def _of_scores(record: Record, scores: Array) -> Iterator[str]:
    """What the scores give otherwise than the record says."""
    complete = len(scores) == record.samples
    if record.complete and not complete:
        yield f"it has {record.samples} samples, and {len(scores)} scores"
    task = _task(record.task)
    if task is not None and task.corpus:
        value = float(task.corpus_metric(scores.sum(axis=0, keepdims=True))[0])
        if not math.isclose(value, record.interval.value, rel_tol=OF_SUMS, abs_tol=SAME):
            yield f"{record.metric} is {value:.6g} by its scores, it says {record.interval.value:.6g}"
        return
    if task is None and scores.shape[1] > 1:
        return  # of a task that is not installed here, which may be one of a corpus
    group = _groups(record, len(scores))
    percent = 100.0 * scores[:, 0]
    value = float(percent.mean())
    if not _near(value, record.interval.value):
        yield f"{record.metric} is {value:.6g} by its scores, it says {record.interval.value:.6g}"
    if group is None:
        return
    _, se = clustered_mean(percent, group)
    count = int(group.max()) + 1
    if count != record.interval.clusters:
        yield f"its samples are of {count} clusters, it says {record.interval.clusters}"
    if not _near(se, record.interval.se):
        yield f"the standard error is {se:.6g} by its scores, it says {record.interval.se:.6g}"
    low, high = t_interval(value, se, count - 1)
    inside = se > 0 and low > 0 and high < 100  # at the edges an interval is of another kind
    if inside and not (_near(low, record.interval.low) and _near(high, record.interval.high)):
        yield f"its interval is [{low:.6g}, {high:.6g}] by its scores, it says otherwise"


def _of_counts(record: Record) -> Iterator[str]:
    """Counts of parameters and MACs that cannot be of the kind of model that the record says it is."""
    sizes = record.parameters
    if not 0 <= sizes.removed <= sizes.prunable <= sizes.dense:
        yield f"{sizes.removed} of {sizes.prunable} prunable entries are removed, of {sizes.dense} parameters"
    if not 0 <= sizes.nonzero <= sizes.total:
        yield f"{sizes.nonzero} of {sizes.total} parameters are not zero"
    low, high = min(sizes.towers.values(), default=0.0), max(sizes.towers.values(), default=0.0)
    realised = sizes.removed / sizes.prunable if sizes.prunable else 0.0
    if sizes.towers and not low - 1e-5 <= realised <= high + 1e-5:
        yield f"{realised:.6f} of its prunable set is removed, and its towers say {low:.6f} to {high:.6f}"
    if record.pattern == "structured":
        if not record.trained and sizes.total > sizes.dense - sizes.removed:
            yield f"{sizes.removed} entries were cut away, and {sizes.total} of {sizes.dense} parameters are left"
    elif sizes.nonzero > sizes.total - sizes.removed:
        yield f"{sizes.removed} entries are zero, and {sizes.nonzero} of {sizes.total} parameters are not"
    if record.macs is None or record.macs_dense is None or sizes.total > sizes.dense:  # adapters beside the weights
        return
    cut = record.pattern == "structured" and sizes.removed > 0
    if record.macs >= record.macs_dense if cut else record.macs != record.macs_dense:
        yield f"it takes {record.macs} MACs of {record.macs_dense}, which pattern {record.pattern} does not leave"


def _compare_with_dense(path: Path, record: Record, scores: Array, dense: Array) -> None:
    """The paired difference to the dense model, from both models' scores."""
    versus, task = record.vs_dense, _task(record.task)
    if versus is None or scores.shape != dense.shape or (task is None and scores.shape[1] > 1):
        return
    if task is not None and task.corpus:
        ours, theirs = (float(task.corpus_metric(matrix.sum(axis=0, keepdims=True))[0]) for matrix in (scores, dense))
        if not math.isclose(ours - theirs, versus.delta, rel_tol=OF_SUMS, abs_tol=10 * SAME):
            raise _contradiction(path, f"the difference to the dense model is {ours - theirs:.6g} by their scores")
        return
    group, difference = _groups(record, len(scores)), 100.0 * (scores[:, 0] - dense[:, 0])
    if not _near(float(difference.mean()), versus.delta):
        raise _contradiction(path, f"the difference to the dense model is {difference.mean():.6g} by their scores")
    if group is None:
        return
    delta, se = clustered_mean(difference, group)
    count = int(group.max()) + 1
    low, high = t_interval(delta, se, count - 1)
    p = two_sided(delta, se, count - 1, count)
    fits = _near(low, versus.low) and _near(high, versus.high) and math.isclose(p, versus.p, rel_tol=OF_P)
    if se > 0 and not fits:
        raise _contradiction(path, f"the difference to the dense model is in [{low:.6g}, {high:.6g}] with p {p:.3g}")


def _groups(record: Record, count: int) -> NDArray[np.intp] | None:
    """The cluster number of every sample; None where the record, of schema 1, does not say."""
    if record.sample_clusters:
        numbers = unpack_cluster_numbers(record.sample_clusters)
        return numbers if len(numbers) == count else None
    return np.arange(count) if record.clusters == count else None


@cache
def _task(name: str) -> Task | None:
    """The task, on no data: for what its class says of scores. None where it is not installed here."""
    entries = table("tasks").entries
    if name not in entries:
        return None
    cls: type[Task] = entries[name].load()
    return cls(Path(), cls.Options())


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=SAME)
