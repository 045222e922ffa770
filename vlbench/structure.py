"""Where a model can be cut: Tower -> Block -> Site -> Slice.

A family describes itself once, as a pure function of its module. Everything a pruner needs follows from that
description: gates, the exact cost of a unit, scores, masks, block-by-block calibration, cutting, saving and
reports. No method walks a model by attribute names and no method names a family.

The *prunable set* is the weight matrices that the sites' slices touch. `sparsity=0.5` is the fraction of the
entries of these matrices that is removed, for every method: by zeros (unstructured, n:m) or by smaller matrices
(structured). Biases go with their unit, and count in a model's parameters, but not in the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from .errors import UserError

Kind = Literal["attention", "ffn"]
AfterCut = Callable[[nn.Module, Tensor], None]


@dataclass(frozen=True, eq=False)
class Slice:
    """Unit u owns the indices index[u] of parameter `param` along `dim`.

    index: int64, shape (units, k). `gated` says that a gate on the unit multiplies these rows (structure of the
    gate); a slice that is not gated is only cut.
    """

    param: str
    shape: tuple[int, ...]
    dim: int
    index: Tensor
    gated: bool = False

    @property
    def entries_per_unit(self) -> int:
        """How many numbers of the parameter one unit owns."""
        return int(self.index.shape[1]) * (torch.Size(self.shape).numel() // self.shape[self.dim])


@dataclass(frozen=True, eq=False)
class Site:
    """One attention or feed-forward layer: a list of units that can be removed together with what they own.

    unit: what one unit is ("dim": one dimension of every head; "rope pair"; "value dim": one dimension of the values of
    every head; "head"; "kv group"; "neuron").
    variants: the same place with another legal unit. refusals: unit -> why this layer cannot be cut so.
    after_cut(module, kept): tells the module which units are left where shapes alone do not say it (rotary pairs,
    head counts). rescale(module, kept): makes the softmax scale 1/sqrt(kept head size), in the attention classes where
    published code comes to it by cutting; nothing that keeps the function calls it. others: matrices of the site that
    read the states of another tower (keys and values of cross-attention). beside: prunable matrices of the site of
    which no unit owns a part (name -> shape): queries and keys, where a unit is a dimension of the values.
    """

    name: str
    kind: Kind
    modality: str
    unit: str
    slices: tuple[Slice, ...]
    variants: tuple[Site, ...] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)
    after_cut: AfterCut | None = None
    rescale: AfterCut | None = None
    others: tuple[str, ...] = ()
    beside: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def units(self) -> int:
        return int(self.slices[0].index.shape[0])

    @property
    def entries_per_unit(self) -> int:
        """Entries of the prunable matrices that one unit owns: the unit cost `params`."""
        return sum(s.entries_per_unit for s in self.slices if len(s.shape) > 1)

    @property
    def parameters_per_unit(self) -> int:
        """Parameters that disappear with one unit, biases included."""
        return sum(s.entries_per_unit for s in self.slices)

    @property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the weight matrices this site prunes."""
        return {s.param: s.shape for s in self.slices if len(s.shape) > 1} | dict(self.beside)

    @property
    def emptied(self) -> bool:
        """Whether nothing of it is left: one of its matrices has no entry."""
        return any(0 in shape for shape in self.matrices.values())

    def with_unit(self, unit: str) -> Site:
        """This site cut by another unit. Raises UserError with the reason where that would not keep the function."""
        for site in (self, *self.variants):
            if site.unit == unit:
                return replace(site, variants=(), refusals=self.refusals)
        legal = ", ".join(s.unit for s in (self, *self.variants))
        why = self.refusals.get(unit, "this layer has no such unit")
        raise UserError(f"{self.name} cannot be cut by {unit!r}: {why}. Legal here: {legal}.")


@dataclass(frozen=True)
class Mask:
    """An argument of a block's forward that says which tokens are real: one that no query sees is padding.

    form "pairs": (..., queries, keys), True where a query sees a key, or numbers added to the logits; two dimensions
    hold for every row of the batch. "tokens": (batch, tokens), above 0 where a token is real. of: the argument that
    holds the states whose tokens it marks, where these are another tower's; empty: the block's own stream.
    """

    argument: str
    of: str = ""
    form: Literal["pairs", "tokens"] = "pairs"


@dataclass(frozen=True, eq=False)
class Block:
    """One layer of a tower: the module that is called, and its sites. Calibration replays a tower block by block.
    refusal: why the whole block cannot be removed (others read what it makes); empty where it can. masks: all arguments
    that mark padding, which calibration leaves out. A block that is given a mask it does not name is refused there
    (`nn.attend.Shared` says itself which of its states are real)."""

    path: str
    sites: tuple[Site, ...]
    refusal: str = ""
    masks: tuple[Mask, ...] = ()


@dataclass(frozen=True, eq=False)
class Stream:
    """The residual stream of a tower, whose dimensions can be removed, too (compression/width.py).

    slices: what a dimension owns: rows of what writes to the stream, columns of what reads it, entries of its norms,
    embeddings and tables. writers: modules whose output is the stream's. norms: modules that normalise over it. Both
    are where a gate acts. after_cut(module, kept): tells the module its width where shapes alone do not say it.
    """

    slices: tuple[Slice, ...]
    writers: tuple[str, ...]
    norms: tuple[str, ...]
    after_cut: AfterCut | None = None

    @property
    def width(self) -> int:
        return int(self.slices[0].index.shape[0])


@dataclass(frozen=True, eq=False)
class Tower:
    """An ordered list of blocks. Towers stand in the order in which data flows through them. after_drop(module, kept):
    tells the module which blocks are left, where it knows some of them by number. stream: its residual stream, or why
    that cannot be narrowed."""

    name: str
    blocks: tuple[Block, ...]
    after_drop: AfterCut | None = None
    stream: Stream | str = "its family does not say what reads and writes its residual stream"

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(site for block in self.blocks for site in block.sites)


@dataclass(frozen=True, eq=False)
class Structure:
    """The whole description. Derived figures need no model: slices carry the shapes."""

    towers: tuple[Tower, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(site for tower in self.towers for site in tower.sites)

    @property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """The prunable set: name -> shape, in order of data flow."""
        shapes: dict[str, tuple[int, ...]] = {}
        for site in self.sites:
            shapes.update(site.matrices)
        return shapes

    @property
    def size(self) -> int:
        """Entries in the prunable set."""
        return sum(torch.Size(shape).numel() for shape in self.matrices.values())

    def site(self, name: str) -> Site:
        return next(s for s in self.sites if s.name == name)

    def with_units(self, choose: Callable[[Site], str]) -> Structure:
        """The same description with every site cut by the unit that `choose(site)` names."""

        def change(site: Site) -> Site:
            return site.with_unit(choose(site))

        return Structure(
            tuple(
                replace(t, blocks=tuple(replace(b, sites=tuple(map(change, b.sites))) for b in t.blocks))
                for t in self.towers
            )
        )

    def tower_sizes(self) -> dict[str, int]:
        """Tower name -> entries of its share of the prunable set."""
        return {tower.name: Structure((tower,)).size for tower in self.towers}


@dataclass(frozen=True)
class Rows:
    """Where a projection stands: a Linear, and the first of its output rows (fused qkv: 0, D, 2D)."""

    path: str
    first: int = 0


def attention_site(
    module: nn.Module, name: str, *, modality: str, query: Rows, key: Rows, value: Rows, output: str, heads: int,
    kv_heads: int | None = None, rope: bool = False, refusals: Mapping[str, str] | None = None,
    set_heads: AfterCut | None = None, after_cut: AfterCut | None = None, rescale: AfterCut | None = None,
    set_values: AfterCut | None = None,
) -> Site:  # fmt: skip
    """Describe one attention layer. Widths are read from the weights, so a cut layer describes itself as well.

    heads / kv_heads: query heads and key/value heads (grouped attention); refusals: illegal unit -> reason.
    rope: dimensions i and i + d/2 rotate together, so that the narrow unit is the pair. set_heads makes whole heads
    (plain attention) or key/value groups legal: it tells the module how many are left. set_values makes dimensions of
    the values alone legal: it tells the module which are left of every head.
    """
    refusals = dict(refusals or {})
    heads = heads or 1  # of a layer whose heads are all gone: one of no width
    kv_heads = kv_heads or heads
    if rope:
        refusals.setdefault("dim", "rotary position embedding turns dimensions i and i + d/2 together")
    layer = _Attention(module, query, key, value, output, heads, kv_heads)
    sites: list[Site] = []
    if ("rope pair" not in refusals and "dim" not in refusals) or rope:
        unit, slices = ("rope pair" if rope else "dim"), layer.dims(rope)
        sites.append(Site(name, "attention", modality, unit, slices, after_cut=after_cut, rescale=rescale))
    whole = "head" if kv_heads == heads else "kv group"
    if set_heads is not None and whole not in refusals:
        sites.append(Site(name, "attention", modality, whole, layer.whole_heads(), after_cut=set_heads))
    if set_values is not None:
        apart, slices = layer.queries_and_keys(), layer.values()
        sites.append(Site(name, "attention", modality, "value dim", slices, after_cut=set_values, beside=apart))
    if not sites:
        raise ValueError(f"{name}: no unit is legal here ({'; '.join(refusals.values())})")
    first, *others = sites
    reads = (f"{key.path}.weight", f"{value.path}.weight") if modality == "cross" else ()
    return replace(first, variants=tuple(others), refusals=refusals, others=reads)


@dataclass(frozen=True)
class _Attention:
    """The projections of one attention layer, and what each kind of unit owns in them."""

    module: nn.Module
    query: Rows
    key: Rows
    value: Rows
    output: str
    heads: int
    kv_heads: int

    @property
    def width(self) -> int:
        """Of a head of the queries and keys, which a fused projection has beside the values."""
        fused = len({rows.path for rows in (self.query, self.key, self.value)}) == 1
        rows = int(self.module.get_parameter(f"{self.key.path}.weight").shape[0])
        return rows // ((3 if fused else 1) * self.kv_heads)

    @property
    def value_width(self) -> int:
        """Of a head of the values: less, where some of their dimensions were cut."""
        return int(self.module.get_parameter(f"{self.output}.weight").shape[1]) // self.heads

    def dims(self, rope: bool) -> tuple[Slice, ...]:
        """Of every head the same dimension; rope: the pair of dimensions that rotate together."""
        collect, pair = _Collector(self.module), 2 if rope else 1
        units = torch.arange(self.width // pair, device="cpu")
        within = torch.stack([units + p * (self.width // 2) for p in range(pair)], 1)  # (units, pair)
        for rows, heads in ((self.query, self.heads), (self.key, self.kv_heads), (self.value, self.kv_heads)):
            collect.rows(rows, _per_head(within, heads, self.width), gated=True)
        collect.columns(self.output, _per_head(within, self.heads, self.width))
        return collect.take()

    def whole_heads(self) -> tuple[Slice, ...]:
        """Whole heads, or a key/value head with the query heads that read it. A gate on v alone already silences
        them, and leaves the softmax of the others untouched."""
        collect, narrow = _Collector(self.module), self.value_width
        collect.rows(self.query, self._groups(self.heads * self.width), gated=False)
        collect.rows(self.key, self._groups(self.kv_heads * self.width), gated=False)
        collect.rows(self.value, self._groups(self.kv_heads * narrow), gated=True)
        collect.columns(self.output, self._groups(self.heads * narrow))
        return collect.take()

    def _groups(self, rows: int) -> Tensor:
        """(kv_heads, k): the rows of each key/value head, or of the query heads that read it."""
        return torch.arange(rows, device="cpu").view(self.kv_heads, -1)

    def values(self) -> tuple[Slice, ...]:
        """Of every head the same dimension of its values: its rows of v, and the columns that read it."""
        collect, width = _Collector(self.module), self.value_width
        within = torch.arange(width, device="cpu")[:, None]
        collect.rows(self.value, _per_head(within, self.kv_heads, width), gated=True)
        collect.columns(self.output, _per_head(within, self.heads, width))
        return collect.take()

    def queries_and_keys(self) -> dict[str, tuple[int, ...]]:
        names = [f"{rows.path}.weight" for rows in (self.query, self.key)]
        return {name: tuple(self.module.get_parameter(name).shape) for name in names}


def ffn_site(
    module: nn.Module,
    name: str,
    *,
    modality: str,
    up: str,
    down: str,
    activation: Callable[[Tensor], Tensor],
    gate: str | None = None,
) -> Site:
    """Describe one feed-forward layer of hidden neurons.

    up: the projection whose output a gate multiplies. In a gated FFN (T5, Llama) it is the linear branch, and `gate`
    (the branch through the activation) is cut but not gated: a gate on both would act squared. Raises ValueError
    where act(0) != 0, because then a gated neuron would not equal a removed one.
    """
    if gate is None and float(activation(torch.zeros(1, device="cpu"))) != 0.0:
        raise ValueError(f"{name}: a gate before this activation does not remove the neuron, since act(0) != 0")
    hidden = int(module.get_parameter(up + ".weight").shape[0])
    each = torch.arange(hidden, device="cpu")[:, None]
    collect = _Collector(module)
    collect.rows(Rows(up), each, gated=True)
    if gate is not None:
        collect.rows(Rows(gate), each, gated=False)
    collect.columns(down, each)
    return Site(name, "ffn", modality, "neuron", collect.take())


def _per_head(within: Tensor, heads: int, width: int) -> Tensor:
    """(units, p) dimensions inside a head -> (units, p * heads) rows of a projection."""
    starts = torch.arange(heads, device="cpu") * width
    return (within[:, None, :] + starts[None, :, None]).flatten(1)


class _Collector:
    """Gathers slices, joining those of one parameter (fused qkv: one slice with three times the indices)."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._parts: dict[tuple[str, int], tuple[list[Tensor], list[Tensor]]] = {}

    def rows(self, rows: Rows, index: Tensor, *, gated: bool) -> None:
        layer = self.module.get_submodule(rows.path)
        index = index + rows.first if rows.first else index  # the same tensor wherever it is the same
        for part in ("weight", "bias"):
            if getattr(layer, part, None) is not None:
                entry = self._parts.setdefault((f"{rows.path}.{part}", 0), ([], []))
                entry[0 if gated else 1].append(index)

    def columns(self, path: str, index: Tensor) -> None:
        self._parts.setdefault((f"{path}.weight", 1), ([], []))[1].append(index)

    def take(self) -> tuple[Slice, ...]:
        slices = []
        for (param, dim), parts in self._parts.items():
            shape = tuple(self.module.get_parameter(param).shape)
            for gated, index in zip((True, False), parts, strict=True):
                if index:
                    whole = index[0] if len(index) == 1 else torch.cat(index, 1)
                    slices.append(Slice(param, shape, dim, whole, gated))
        self._parts = {}
        return tuple(sorted(slices, key=lambda s: not s.gated))


def count_setter(path: str, attribute: str) -> AfterCut:
    """An after_cut that writes the number of kept units into an attribute of the layer at `path` (head counts)."""

    def set_count(module: nn.Module, kept: Tensor) -> None:
        setattr(module.get_submodule(path), attribute, int(kept.numel()))

    return set_count


def scale_setter(path: str, attribute: str = "scale") -> AfterCut:
    """A `rescale` that writes 1/sqrt(kept) into the softmax scale of the layer at `path`."""

    def set_scale(module: nn.Module, kept: Tensor) -> None:
        setattr(module.get_submodule(path), attribute, int(kept.numel()) ** -0.5)

    return set_scale


def blocks_named(module: nn.Module, prefix: str) -> Iterator[tuple[int, str, nn.Module]]:
    """(index, dotted path, block) of the children of the module list at `prefix`."""
    for index, block in enumerate(module.get_submodule(prefix).children()):
        yield index, f"{prefix}.{index}", block


def check_structure(module: nn.Module, structure: Structure) -> None:
    """Assert what every description must hold; used by the contract tests. Raises AssertionError naming the site."""
    owned: dict[tuple[str, int], Tensor] = {}
    names = [site.name for site in structure.sites]
    assert len(names) == len(set(names)), "two sites of one name"
    for site in structure.sites:
        assert any(s.gated for s in site.slices), f"{site.name}: no slice carries the gate"
        _check_slices(module, site, owned)
    for tower in structure.towers:
        if isinstance(tower.stream, Stream):
            _check_stream(module, tower.name, tower.stream)


def _check_slices(module: nn.Module, site: Site, owned: dict[tuple[str, int], Tensor]) -> None:
    for part in site.slices:
        parameter = module.get_parameter(part.param)
        assert tuple(parameter.shape) == part.shape, f"{site.name}: {part.param} has another shape"
        assert part.index.shape[0] == site.units, f"{site.name}: slices disagree on the number of units"
        assert not (part.gated and part.dim != 0), f"{site.name}: a gate multiplies output rows only"
        taken = owned.setdefault((part.param, part.dim), torch.zeros(part.shape[part.dim], dtype=torch.bool))
        flat = part.index.flatten()
        assert flat.unique().numel() == flat.numel(), f"{site.name}: a row is owned twice"
        assert not bool(taken[flat].any()), f"{site.name}: a row of {part.param} belongs to two units"
        taken[flat] = True


def _check_stream(module: nn.Module, name: str, stream: Stream) -> None:
    owned: set[tuple[int, int]] = set()
    for part in stream.slices:
        parameter = module.get_parameter(part.param)
        assert tuple(parameter.shape) == part.shape, f"{name}: {part.param} has another shape"
        assert part.index.shape[0] == stream.width, f"{name}: slices disagree on the width of the stream"
        assert part.index.unique().numel() == part.index.numel(), f"{name}: {part.param} is owned twice"
        assert (id(parameter), part.dim) not in owned, f"{name}: {part.param} stands twice in the stream"
        owned.add((id(parameter), part.dim))
