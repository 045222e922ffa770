"""Low-rank adapters on a pruned model: where they go, their training alone, and what merging them leaves of the zeros.

By default every matrix of the towers that were pruned gets one. Towers may have ranks of their own, as may parts of the
model outside the prunable set, by the name of their module (RESSA trains the Q-Former, which it never prunes).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from ..compression.depth import key_of
from ..compression.state import Compression
from ..compression.width import key_of_width
from ..errors import RunFailed, UserError
from ..job import Job
from ..model import Model
from ..nn.adapted import Adapted, MaskedProduct, attach, detach, effective
from ..options import later
from ..pruning.modality import modality
from ..structure import Structure, Tower
from ..training.hooks import Hook
from .distill import TeacherOptions
from .perturb import Perturbed, adapted_layers
from .tuning import TuneOptions, tuned

Ranks = dict[str, int]  # path of a Linear -> rank of its adapter
LISTED = 12  # names in a sentence


class RestoreOptions(TeacherOptions, TuneOptions):
    """A stage that trains a few parameters and leaves the rest alone. Defaults suit the mini world."""

    steps: int = 300
    lr: float = 5e-3
    warmup: int = 20
    weight_decay: float = 0.0
    batch_size: int = 128


class AdapterOptions(RestoreOptions):
    """Low-rank adapters. Defaults are those of RESSA's code, but for the length of the training."""

    kd_weight: float = 0.1
    temperature: float = 1.0
    rank: int = Field(8, ge=1, description="rank of the adapters of every tower that was pruned")
    ranks: str = Field(
        "",
        description="ranks of towers, modalities or modules by name, like vision:4,language:8,qformer?:2; 0 leaves one "
        "out, ? says that the model may lack it",
    )
    alpha: float = Field(16.0, gt=0, description="the product of the two factors is scaled by alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the adapters' input")
    targets: str = Field(
        "", description="names that the matrices' modules end in, like qkv,fc1; left out: every matrix of the towers"
    )

    perturb: Literal["off", "mgpo", "ggpo"] = later(
        "off", description="move the frozen weights in every step: mgpo: along the adapters' momentum; ggpo: by noise"
    )
    rho: float = later(0.05, gt=0, description="perturb=mgpo: how far, of a step of unit norm")
    beta: float | None = later(
        None, ge=0, description="mgpo: decay of the gradient's norm (0.9); ggpo: weight of the gradient (0.01)"
    )
    sigma: float = later(0.03, ge=0, description="perturb=ggpo: weight of the weights' norm in the noise")

    @model_validator(mode="after")
    def _perturbed(self) -> AdapterOptions:
        if self.perturb == "off" and (extra := self.changed("rho", "beta", "sigma")):
            raise ValueError(f"{extra[0]}= belongs to perturb=mgpo or ggpo: give that, too")
        if self.perturb == "mgpo" and self.optimiser != "adamw":
            raise ValueError(f"perturb=mgpo goes along AdamW's momentum: optimiser={self.optimiser} has none")
        return self

    @property
    def hooks(self) -> Callable[[nn.Module], list[Hook]]:
        """Network with adapters -> what its training takes along."""
        if self.perturb == "off":
            return lambda net: []
        beta = {"mgpo": 0.9, "ggpo": 0.01}[self.perturb] if self.beta is None else self.beta
        kind = self.perturb
        return lambda net: [Perturbed(adapted_layers(net), kind, rho=self.rho, beta=beta, sigma=self.sigma)]

    @field_validator("ranks")
    @classmethod
    def _parsed(cls, value: str) -> str:
        parse_ranks(value)
        return value


def parse_ranks(text: str) -> dict[str, int]:
    """ "vision:4,qformer?:2" -> {"vision": 4, "qformer?": 2}. Raises ValueError for anything else."""
    ranks: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([\w.]+\??):(\d+)", part)
        if match is None:
            raise ValueError(f"{part!r} should be a tower and its rank, like vision:4")
        if match[1] in ranks:
            raise ValueError(f"{match[1]} is given twice")
        ranks[match[1]] = int(match[2])
    return ranks


# Where they go -----------------------------------------------------------------------------------------------------


def placed(model: Model, options: AdapterOptions, pruned: set[str]) -> Ranks:
    """The ranks of the adapters of a model whose towers `pruned` have lost something, in order of data flow. Raises
    UserError for a name that is not there, a rank that a matrix cannot have, and targets that match nothing."""
    net, structure = model.net, model.structure()
    candidates = _candidates(net, structure, options, pruned)
    suffixes = list(filter(None, options.targets.split(",")))
    chosen = {p: r for p, r in candidates.items() if not suffixes or any(_ends(p, suffix) for suffix in suffixes)}
    if not chosen:
        names = sorted({path.rpartition(".")[2] for path in candidates})
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        sentence = f"targets={options.targets} matches" if suffixes else "ranks=0 everywhere leaves"
        raise UserError(
            f"{sentence} none of the matrices here, which end in {', '.join(names[:LISTED]) or 'nothing'}{more}."
        )
    for path, rank in chosen.items():
        layer = net.get_submodule(path)
        if isinstance(layer, Adapted):
            raise UserError(f"{path} has an adapter beside its weight already: train that one with merge=true.")
        rows, columns = layer.weight.shape  # type: ignore[misc]
        if rank > min(rows, columns):
            raise UserError(
                f"rank {rank} is too large for {path}, a matrix of {rows} x {columns}: at most {min(rows, columns)}."
            )
    return chosen


def _candidates(net: nn.Module, structure: Structure, options: AdapterOptions, pruned: set[str]) -> Ranks:
    """What could have an adapter, if all targets were wanted."""
    given, ranks, used = parse_ranks(options.ranks), Ranks(), set()
    for tower in structure.towers:
        name = next((n for n in _names(tower) if n in given), "")
        used |= {*_names(tower)}
        if rank := given[name] if name else options.rank * (tower.name in pruned):
            ranks.update({matrix.removesuffix(".weight"): rank for matrix in Structure((tower,)).matrices})
    prunable = {matrix.removesuffix(".weight") for matrix in structure.matrices}
    modules = dict(net.named_modules())
    for name in given.keys() - used:
        path = name.removesuffix("?")
        if path in modules:
            inside = {p: m for p, m in modules.items() if p == path or p.startswith(f"{path}.")}
            plain = [p for p, m in inside.items() if isinstance(m, nn.Linear) and p not in prunable]
            ranks.update(dict.fromkeys(plain if given[name] else [], given[name]))
        elif not name.endswith("?"):
            names = ", ".join(f"{tower.name} ({modality(tower)})" for tower in structure.towers)
            raise UserError(f"ranks={options.ranks}: this model has no tower or module {path!r}. Its towers: {names}.")
    return ranks


def _names(tower: Tower) -> list[str]:
    """What `ranks` may call a tower, its own name before its modality's."""
    return [name for key in (tower.name, modality(tower)) for name in (key, f"{key}?")]


def _ends(path: str, suffix: str) -> bool:
    return path == suffix or path.endswith(f".{suffix}")


def pruned_towers(structure: Structure, state: Compression) -> set[str]:
    """Towers that have zeros or were cut; all of them where nothing was pruned (the control)."""
    cut = {name for made in state.cuts for name in made.sites}
    filled = {
        tower.name
        for tower in structure.towers
        if {key_of(tower), key_of_width(tower)} & cut
        or any(site.name in cut or site.matrices.keys() & state.masks.keys() for site in tower.sites)
    }
    return filled or {tower.name for tower in structure.towers}


def refuse_misplaced(model: Model, options: AdapterOptions) -> None:
    """Raise UserError, before a pruner has worked, for what `placed` would refuse whatever it prunes, and for a rank
    that no tower has or a teacher that does not fit."""
    structure, given = model.structure(), parse_ranks(options.ranks)
    if options.changed("rank") and all(given.keys() & set(_names(tower)) for tower in structure.towers):
        raise UserError(
            f"rank={options.rank} is no tower's: ranks={options.ranks} names all of them, so give that instead."
        )
    towers = {tower.name for tower in structure.towers}
    if not any(_fits(model, options, {name}) for name in towers):
        placed(model, options, towers)
    refuse_large_teacher(model, options)


def _fits(model: Model, options: AdapterOptions, pruned: set[str]) -> bool:
    try:
        return bool(placed(model, options, pruned))
    except UserError:
        return False


def refuse_large_teacher(model: Model, options: TeacherOptions) -> None:
    """Raise UserError for what distillation asks that this model, or the memory, does not give."""
    options.refuse_model(model)


# Their training ----------------------------------------------------------------------------------------------------


@contextmanager
def alone(net: nn.Module) -> Iterator[None]:
    """Inside, nothing of `net` is trained but what is added or chosen there."""
    before = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    net.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def restore(
    job: Job, stage: str, options: RestoreOptions, more: Callable[[nn.Module], list[Hook]] = lambda net: []
) -> None:
    """Train what requires a gradient, at the best of the learning rates that are asked for. more: network -> what its
    training takes along besides."""
    count = sum(p.numel() for p in job.model.net.parameters() if p.requires_grad)

    def train(job: Job, options: RestoreOptions) -> None:
        hooks = options.hooks(job.model.net) if isinstance(options, AdapterOptions) else []
        job.train(stage, options, [*hooks, *more(job.model.net)], options.objective(job))

    tuned(job, stage, options, train)
    job.changes.state.log[stage] = {**job.changes.state.log[stage], "parameters": count}


@contextmanager
def drawn(seed: int) -> Iterator[None]:
    """Inside, random numbers are a function of `seed`, and those after it are as if there had been none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def attach_new(
    net: nn.Module, ranks: Ranks, options: AdapterOptions, masks: Mapping[str, Tensor], *, recompute: bool
) -> None:
    """New adapters: under the mask where a weight has one, beside the weight elsewhere. A is drawn as a Linear's weight
    is (uniform, He's with a = sqrt(5)) and B is zero, so that training starts at the pruned model."""
    for path, rank in ranks.items():
        layer = net.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        rows, columns = layer.weight.shape
        wide = torch.promote_types(layer.weight.dtype, torch.float32)
        a = nn.init.kaiming_uniform_(torch.empty(rank, columns, dtype=wide), math.sqrt(5))
        b, keep = torch.zeros(rows, rank, dtype=wide), masks.get(f"{path}.weight")
        attach(layer, a, b, options.alpha / rank, dropout=options.dropout, keep=keep, recompute=recompute)


# What they leave ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def merge(net: nn.Module, ranks: Ranks) -> None:
    """Add the adapters to the weights, in float32 at least, and take them off; under a mask its zeros stay."""
    for path in ranks:
        layer = net.get_submodule(path)
        assert isinstance(layer, Adapted)
        keep = layer.keep if isinstance(layer, MaskedProduct) else torch.ones_like(layer.weight, dtype=torch.bool)
        layer.weight.copy_(effective(layer.weight, keep, layer.lora_a, layer.lora_b, layer.scaling))
        detach(layer)


def verify_zeros(net: nn.Module, state: Compression) -> None:
    """Raise RunFailed where a weight that a mask has set to zero is not, or a mask is not of its n:m pattern."""
    n_m = re.search(r"(\d+):(\d+)$", state.pattern)
    for name, keep in state.masks.items():
        weight = net.get_parameter(name)
        if bool((weight[~keep.to(weight.device)] != 0).any()):
            raise RunFailed(f"merging the adapter of {name} filled zeros of its mask: a mistake in the method.")
        if n_m is not None and bool((keep.reshape(-1, int(n_m[2])).sum(1) != int(n_m[1])).any()):
            raise RunFailed(f"the mask of {name} is not of the pattern {state.pattern}.")


def forget_filled(net: nn.Module, state: Compression) -> None:
    """Drop the masks that merging has filled: the model is as dense there as it looks, and its pattern says so."""
    if not state.masks:
        return
    for name, keep in list(state.masks.items()):
        weight = net.get_parameter(name)
        if bool((weight[~keep.to(weight.device)] != 0).any()):
            del state.masks[name]
    if not state.masks:
        state.pattern = "structured" if state.pattern.startswith("structured+") else "dense"
