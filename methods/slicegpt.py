"""SliceGPT (Ashkboos et al. 2024, arXiv 2401.15024): turn a stream to its principal directions and cut the last ones.

    H = sum over tokens of x^T x (+ 0.01 of the mean of its diagonal),  Q its eigenvectors by falling eigenvalue
    what writes to the stream  W <- Q^T W,   what reads it  W <- W Q,   then the trailing dimensions go

x is what the tower's norms give before their weights, which go into the Linears behind them; before anything is cut
the model computes what it did (vlbench/pruning/rotation.py). The published code turns every layer by a Q of its own and
puts a matrix Q_before^T Q_after on every shortcut; here a tower has one Q, of all its norms' outputs together, so that
shortcuts stay plain and the cut model is a narrower one of the same kind. Norms keep dividing by the width before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlbench.compression.cut import Kept
from vlbench.compression.width import choose_width, key_of_width, stream_of
from vlbench.cost.sample import stated, train
from vlbench.errors import RunFailed, UserError
from vlbench.job import Job
from vlbench.method import Method, method
from vlbench.model import Model
from vlbench.pruning.modality import tower_ratios
from vlbench.pruning.options import SampledOptions
from vlbench.pruning.rotation import Plan, folded, plan, principal, second_moment, turn_norm, turned
from vlbench.structure import Structure, Tower

NEAR = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.05}  # of the largest output


class SliceOptions(SampledOptions):
    """Towers are left alone with vision=0, language=0 or towers=NAME:0."""

    pattern: Literal["structured"] = "structured"


@method(
    "slicegpt",
    title="SliceGPT: principal directions of the residual streams",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2401.15024",
)
class SliceGpt(Method):
    """Cuts the directions of a tower's stream in which its tokens vary least. Towers whose norms stand on the stream
    itself (BERT's) or whose stream cannot be narrowed are refused: leave them out by their ratio."""

    Options = SliceOptions

    def check(self, structure: Structure) -> None:
        """Raise UserError for towers that cannot be narrowed and a target that is out of reach."""
        towers = self.towers(structure)
        self.kept(structure, {t.name: torch.arange(stream_of(t).width).flip(0) for t in towers})

    def check_model(self, model: Model) -> None:
        for tower in self.towers(model.structure()):
            plan(model.net, tower, partial(probe, model))

    def apply(self, job: Job) -> None:
        structure, net = job.changes.structure, job.model.net.eval()
        plans = [plan(net, tower, partial(probe, job.model)) for tower in self.towers(structure)]
        before = probe(job.model)
        batches = job.data.calibration(self.options.calibration_samples, 1)
        values: dict[str, Tensor] = {}
        norms: dict[str, int] = dict(job.changes.state.at_run_time.get(self.name, {}))
        moments = _moments(net, plans, [partial(job.loss, batch) for batch in batches])
        for made in plans:
            values[made.tower.name], q = principal(moments[made.tower.name])
            norms |= turn(job.changes, made, q)
        if norms:
            job.changes.at_run_time(self.name, norms)
        _refuse_other(before, probe(job.model), job.model.dtype)
        keep = self.kept(structure, {name: value.cpu() for name, value in values.items()})
        for made in plans:
            _keep_scale(job.changes, made, len(keep[key_of_width(made.tower)]))
        job.changes.cut(keep)
        job.changes.state.log[self.name] = {
            "variance": {n: round(float(v[: len(keep[f"{n}.width"])].sum() / v.sum()), 6) for n, v in values.items()}
        }

    def towers(self, structure: Structure) -> list[Tower]:
        ratios = tower_ratios(structure, self.options)
        return [tower for tower in structure.towers if ratios[tower.name] > 0]

    def kept(self, structure: Structure, importance: Mapping[str, Tensor]) -> Kept:
        """Tower -> (width,) falling importance -> the leading dimensions, as many as meet its ratio; one share for all
        where the ratios are equal."""
        ratios, towers = tower_ratios(structure, self.options), self.towers(structure)
        together = len(set(ratios.values())) == 1
        keep: Kept = {}
        for part in [structure] if together else [Structure((tower,)) for tower in towers]:
            chosen = {key_of_width(t): importance[t.name] for t in part.towers}
            keep |= choose_width(part, chosen, ratios[part.towers[0].name], self.options.multiple_of)
        return keep

    @classmethod
    def replay(cls, model: Model, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(full, int) for full in state.values()):
            raise UserError(f"the manifest of a model by {cls.name} does not say which norms were turned.")
        for path, full in state.items():
            turn_norm(model.net, path, full)


def turn(changes: Any, made: Plan, q: Tensor) -> dict[str, int]:
    """Fold and turn a tower; the model computes what it did. Returns its norms that run otherwise from now on, and the
    width that they divide by. changes: of the job."""
    net, fold = changes.model.net, folded(changes.model.net, made)
    changes.update(turned(fold.weights, made, q))
    changes.add_biases(fold.biases)
    norms = dict.fromkeys(made.readers, len(q)) if made.mean else {}
    for path, full in norms.items():
        turn_norm(net, path, full)
    return norms


def _keep_scale(changes: Any, made: Plan, kept: int) -> None:
    """An RMS norm of the library divides by the width that is left: its weight makes up for that."""
    if not made.mean:
        factor = (made.stream.width / kept) ** 0.5
        net = changes.model.net
        changes.update({f"{n}.weight": net.get_parameter(f"{n}.weight").detach() * factor for n in made.readers})


def probe(model: Model) -> list[Tensor]:
    """What the model computes of its capability's stated sample."""
    capability = model.card.capabilities[0]
    model.net.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch = stated(capability).make(model, 2, True)
        states = model.encode(batch.images)
        outputs = [states, train(model, capability, batch)]
    return [x.detach().double().cpu() for x in outputs if isinstance(x, Tensor)]


def _refuse_other(before: Sequence[Tensor], after: Sequence[Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(before[-1:], after[-1:], strict=True):
        off = float((one - other).abs().max())
        if not off <= NEAR.get(dtype, 1e-3) * max(1.0, float(one.abs().max())):
            raise RunFailed(
                f"turning the streams changes what the model computes (by {off:.3g}): a tower has a part that is not "
                "known to turn with it; leave it out by its ratio, like vision=0."
            )


def _moments(net: nn.Module, plans: Sequence[Plan], runs: Sequence[Callable[[], Any]]) -> dict[str, Tensor]:
    """Tower -> (width, width) second moment of what its norms give before their weights."""
    moments: dict[str, Tensor] = {}
    with _watched(net, plans, moments), torch.no_grad():
        for run in runs:
            run()
    return moments


@contextmanager
def _watched(net: nn.Module, plans: Sequence[Plan], moments: dict[str, Tensor]) -> Iterator[None]:
    def watch(made: Plan) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].double()
            x = x - x.mean(-1, keepdim=True) if made.mean else x
            moment = second_moment([x / (x.square().mean(-1, keepdim=True) + 1e-12).sqrt()])
            moments[made.tower.name] = moments.get(made.tower.name, torch.zeros_like(moment)) + moment

        return hook

    handles = [net.get_submodule(n).register_forward_pre_hook(watch(made)) for made in plans for n in made.readers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
