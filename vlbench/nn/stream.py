"""The residual stream of a tower: which parameters own its dimensions.

Inside the blocks this follows from the sites: what a site's last projection makes is written to the stream, what its
first ones take is read from it (cross-attention takes keys and values from another tower's), and norms of the stream's
width run over it. What stands around the blocks, embeddings and heads, a family says.

A stream that cannot be narrowed with the function of its gates is refused with the reason: where a norm is none that
can run over some of the entries, or where a block has a part that nothing here describes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..structure import AfterCut, Block, Site, Slice, Stream, Tower

# Norms inside attention, which run over heads and not over the stream.
_OF_HEADS = ("q_norm", "k_norm")


def with_stream(
    module: nn.Module,
    tower: Tower,
    *,
    writes: Sequence[str] = (),
    reads: Sequence[str] = (),
    norms: Sequence[str] = (),
    tables: Sequence[str] = (),
    products: Sequence[str] = (),
    root: str | None = None,
    beyond: str | None = None,
    unread: Sequence[Block] = (),
    after_cut: AfterCut | None = None,
) -> Tower:
    """The tower with its stream, or with why that cannot be narrowed.

    Of what stands around the blocks, by path; what a model lacks is skipped. writes: modules (Linear, convolution,
    Embedding) or parameters that make the stream; reads: Linears that take it, or several tokens of it side by side;
    norms: over it; tables: parameters whose last dimension is the stream's; products: parameters P of x @ P. root: the
    module of the tower, all parameters of which have to be described but for those of the module `beyond`, which
    follows its readers. unread: blocks of the same stream that are in no tower, because nothing reads them.
    """
    width = _width(module, tower)
    collect = _Parts(module, width)
    takes: tuple[tuple[Callable[[str], None], Sequence[str]], ...] = (
        (collect.writer, writes), (collect.reader, reads), (collect.norm, norms), (collect.table, tables),
        (collect.product, products),
    )  # fmt: skip
    try:
        for block in (*tower.blocks, *unread):
            collect.block(block)
        for take, paths in takes:
            for path in paths:
                take(path)
        if root is not None:
            after = [] if beyond is None else [beyond]
            collect.refuse_others(root, [*after, *(block.path for block in (*tower.blocks, *unread))])
    except ValueError as error:
        return replace(tower, stream=str(error))
    return replace(tower, stream=Stream(tuple(collect.slices), tuple(collect.writers), tuple(collect.norms), after_cut))


def reads_from_others(towers: Sequence[Tower]) -> list[str]:
    """Modules of these towers that read the states of another one: keys and values of cross-attention."""
    matrices = [name for tower in towers for site in tower.sites for name in site.others]
    return [name.rpartition(".")[0] for name in dict.fromkeys(matrices)]


def _width(module: nn.Module, tower: Tower) -> int:
    return int(module.get_parameter(f"{next(_writers(tower.blocks[0]))}.weight").shape[0])


def _matrices(block: Block) -> Iterator[tuple[Site, Slice]]:
    for site in block.sites:
        for variant in (site, *site.variants):
            yield from ((site, part) for part in variant.slices if len(part.shape) > 1)


def _writers(block: Block) -> Iterator[str]:
    yield from dict.fromkeys(p.param.removesuffix(".weight") for _, p in _matrices(block) if p.dim == 1)


def _readers(block: Block) -> Iterator[str]:
    names = [p.param for site, p in _matrices(block) if p.dim == 0 and p.param not in site.others]
    names += [name for site in block.sites for name in site.beside]  # queries and keys, where values are cut alone
    yield from dict.fromkeys(name.removesuffix(".weight") for name in names)


class _Parts:
    """Collects what owns the stream's dimensions. Raises ValueError, in words for a user, for what it cannot be."""

    def __init__(self, module: nn.Module, width: int) -> None:
        self.module, self.width = module, width
        self.slices: list[Slice] = []
        self.writers: list[str] = []
        self.norms: list[str] = []
        self._taken: set[tuple[int, int]] = set()  # tied parameters stand in it once

    def block(self, block: Block) -> None:
        for path in _writers(block):
            self.writer(path)
        for path in _readers(block):
            self.reader(path)
        sites = {part.param.rpartition(".")[0] for _, part in _matrices(block)} | set(_readers(block))
        for name, inner in self.module.get_submodule(block.path).named_modules(prefix=block.path):
            if name in sites or name.rpartition(".")[2] in _OF_HEADS:
                continue
            if "Norm" in type(inner).__name__ and not list(inner.children()):
                if self.width in [*_normalised(inner), *(p.shape[0] for p in inner.parameters())]:
                    self.norm(name)
                continue
            for key, parameter in inner.named_parameters(recurse=False):
                self._rest(f"{name}.{key}", parameter)

    def _rest(self, path: str, parameter: nn.Parameter) -> None:
        """Factors of a branch are a table; a Linear beside the sites that joins several branches is read and written;
        anything else of the stream's width is not understood."""
        if self.width not in parameter.shape and parameter.shape[-1] % self.width:
            return
        owner = path.rpartition(".")[0]
        if parameter.ndim == 1 and not isinstance(self.module.get_submodule(owner), nn.Linear):
            self.add(path, 0)
            return
        layer = self.module.get_submodule(owner)
        if isinstance(layer, nn.Linear) and layer.out_features == self.width and not layer.in_features % self.width:
            if path.endswith(".weight"):
                self.writer(owner)
                self.reader(owner)
            return
        raise ValueError(f"{path} has the stream's width, and what it does there is not known")

    def writer(self, path: str) -> None:
        layer = self._get(path)
        if layer is None:
            self.table(path)
            return
        self.add(f"{path}.weight", 1 if isinstance(layer, nn.Embedding) else 0)
        if getattr(layer, "bias", None) is not None:
            self.add(f"{path}.bias", 0)
        self.writers.append(path)

    def reader(self, path: str) -> None:
        if self._get(path) is not None:
            self.add(f"{path}.weight", 1)

    def norm(self, path: str) -> None:
        layer = self._get(path)
        if layer is None:
            return
        if isinstance(layer, _NormBase | nn.GroupNorm) or list(layer.buffers()):
            raise ValueError(f"its norm {path} ({type(layer).__name__}) cannot run over some of its entries")
        for key, _ in layer.named_parameters():
            self.add(f"{path}.{key}", 0)
        self.norms.append(path)

    def table(self, path: str) -> None:
        if (parameter := self._parameter(path)) is not None:
            self.add(path, parameter.ndim - 1)

    def product(self, path: str) -> None:
        if self._parameter(path) is not None:
            self.add(path, 0)

    def refuse_others(self, root: str, apart: Sequence[str]) -> None:
        taken = {number for number, _ in self._taken}
        for name, parameter in self.module.get_submodule(root).named_parameters(prefix=root):
            inside = any(name.startswith(f"{path}.") for path in apart)
            of_written = name.removesuffix(".bias") + ".weight"
            described = id(parameter) in taken or any(s.param == of_written for s in self.slices)
            if not inside and not described:
                raise ValueError(f"what {name} does to its residual stream is not known")

    def add(self, path: str, dim: int) -> None:
        parameter = self.module.get_parameter(path)
        size = int(parameter.shape[dim])
        if size % self.width:
            raise ValueError(f"{path} is {size} wide, and the stream {self.width}")
        if (id(parameter), dim) in self._taken:
            return
        self._taken.add((id(parameter), dim))
        # Several tokens side by side (merged patches, two images): dimension u of each of them.
        units = torch.arange(self.width, device="cpu")[:, None]
        index = units + torch.arange(size // self.width, device="cpu")[None, :] * self.width
        self.slices.append(Slice(path, tuple(parameter.shape), dim, index))

    def _parameter(self, path: str) -> nn.Parameter | None:
        try:
            return self.module.get_parameter(path)
        except AttributeError:
            return None

    def _get(self, path: str) -> nn.Module | None:
        owner, _, name = path.rpartition(".")
        try:
            layer = getattr(self.module.get_submodule(owner), name, None)
        except AttributeError:
            return None
        return layer if isinstance(layer, nn.Module) and (_normalised(layer) or hasattr(layer, "weight")) else None


def _normalised(norm: nn.Module) -> tuple[int, ...]:
    shape = getattr(norm, "normalized_shape", ())
    return tuple(shape) if isinstance(shape, Sequence) else (int(shape),)
