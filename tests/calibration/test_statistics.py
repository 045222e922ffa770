"""Sums over the inputs of matrices: shared, merged, without padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.nn.test_kinds import adopted, kinds
from vlbench.calibration.statistics import Collector, Statistics, collected
from vlbench.errors import RunFailed
from vlbench.structure import Block, Structure

Seen = dict[str, Statistics]


def every(net: nn.Module, structure: Structure, *runs: object, gram: bool = False) -> Seen:
    """Statistics of all blocks over runs of the whole model."""
    found: Seen = {}
    for tower in structure.towers:
        for block in tower.blocks:
            with collected(net, block, gram=gram) as seen, torch.no_grad():
                for run in runs:
                    run()  # type: ignore[operator]
            found.update(seen)
    return found


def named(name: str) -> kinds.Kind:
    return next(k for k in kinds.KINDS if k.name == name)


def test_projections_of_one_input_share_one_accumulator() -> None:
    kind = named("llama")
    net = adopted(kind)
    seen = every(net, kind.structure(net), lambda: kind.run(net), gram=True)
    q, k, v, o = (next(s for n, s in seen.items() if f"layers.0.self_attn.{p}_proj" in n) for p in "qkvo")
    assert q is k
    assert k is v
    assert o is not q
    gate, up = (next(s for n, s in seen.items() if f"layers.0.mlp.{p}_proj" in n) for p in ("gate", "up"))
    assert gate is up
    assert up is not q


class Fickle(nn.Module):
    """Its two projections read one tensor in the first call and two in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        out: Tensor = self.a(x) + self.b(x if other is None else other)
        return out


def test_inputs_that_part_later_are_told_apart() -> None:
    net = Fickle()
    site = type("Site", (), {"matrices": {"a.weight": (2, 3), "b.weight": (2, 3)}})()
    x, y = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    with collected(net, Block("", (site,)), gram=True) as seen:  # type: ignore[arg-type]
        net(x)
        assert seen["a.weight"] is seen["b.weight"]
        net(x, y)
        net(y, y)
    assert torch.allclose(seen["a.weight"].gram, sum(v[0].double().T @ v[0].double() for v in (x, x, y)))  # type: ignore[arg-type]
    assert torch.allclose(seen["b.weight"].gram, sum(v[0].double().T @ v[0].double() for v in (x, y, y)))  # type: ignore[arg-type]
    assert seen["a.weight"].samples == seen["b.weight"].samples == 3


def test_an_input_changed_in_place_is_refused() -> None:
    net = Fickle()
    site = type("Site", (), {"matrices": {"a.weight": (2, 3)}})()
    collector = Collector(net, Block("", (site,)), gram=False, dtype=torch.float64)  # type: ignore[arg-type]
    x = torch.randn(1, 4, 3)
    collector.note("a.weight", x)
    x.mul_(2)
    with pytest.raises(RunFailed, match=r"input of a\.weight is changed in place"):
        collector.flush()


def test_halves_merged_are_the_whole() -> None:
    x = torch.randn(8, 5, 6)
    whole, *halves = (Statistics.zeros(6, x.device, gram=True) for _ in range(3))
    whole.add(x)
    for half, part in zip(halves, (x[:3], x[3:]), strict=True):
        half.add(part)
        half.gradient = torch.full((2, 6), float(len(part)))
    halves[0].merge(halves[1])
    assert halves[0].samples == whole.samples == 8
    assert torch.allclose(halves[0].square_sum, whole.square_sum, rtol=1e-14)
    assert torch.allclose(halves[0].gram, whole.gram)  # type: ignore[arg-type]
    assert torch.allclose(halves[0].norm, (x.double().square().sum((0, 1)) / 8).sqrt())
    assert torch.allclose(halves[0].gradient, torch.full((2, 6), (3 * 3 + 5 * 5) / 8))  # type: ignore[arg-type]


def test_vision_and_text_tokens_of_one_stream_are_told_apart() -> None:
    """Of two samples with padding; what is not vision's is text's, and workers' parts add up."""
    x = torch.randn(2, 5, 6)
    image = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 1]], dtype=torch.bool)
    real = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
    whole, one, other = (Statistics.zeros(6, x.device, gram=True) for _ in range(3))
    assert whole.text is None
    whole.add(x, real, image)
    one.add(x[:1], real[:1], image[:1])
    other.add(x[1:], real[1:], image[1:])
    one.merge(other)
    for seen in (whole, one, whole.clone()):
        for part, tokens in ((seen.vision, image & real), (seen.text, ~image & real)):
            assert part is not None
            assert part.samples == 2
            assert torch.allclose(part.square_sum, x[tokens].double().square().sum(0))
            assert torch.allclose(part.gram, x[tokens].double().T @ x[tokens].double())  # type: ignore[arg-type]


def test_a_matrix_of_inputs_is_one_sample_and_precision_is_as_asked() -> None:
    seen = Statistics.zeros(3, torch.device("cpu"), dtype=torch.float32)
    seen.add(torch.ones(7, 3))
    assert (seen.samples, seen.square_sum.dtype) == (1, torch.float32)


def test_padding_is_not_counted_in_llama() -> None:
    kind = named("llama")
    net = adopted(kind)
    ids, mask = kinds.tokens(2, 6), kinds.mask(6, 4)
    padded = every(net, kind.structure(net), lambda: net(ids, attention_mask=mask, use_cache=False), gram=True)
    singles = [lambda i=i, n=n: net(ids[i : i + 1, :n], use_cache=False) for i, n in ((0, 6), (1, 4))]
    alone = every(net, kind.structure(net), *singles, gram=True)
    equal(padded, alone)


def test_padding_is_not_counted_in_t5_nor_in_what_its_decoder_reads() -> None:
    kind = next(k for k in kinds.KINDS if k.name.startswith("t5"))
    net = adopted(kind)
    ids, mask, target = kinds.tokens(2, 6), kinds.mask(6, 4), kinds.tokens(2, 3, seed=5)

    def run(i: slice, n: int, **more: Tensor) -> Tensor:
        out: Tensor = net(input_ids=ids[i, :n], decoder_input_ids=target[i], use_cache=False, **more).logits
        return out

    padded = every(net, kind.structure(net), lambda: run(slice(0, 2), 6, attention_mask=mask))
    alone = every(net, kind.structure(net), lambda: run(slice(0, 1), 6), lambda: run(slice(1, 2), 4))
    equal(padded, alone)


def equal(padded: Seen, alone: Seen) -> None:
    assert padded.keys() == alone.keys()
    for name, seen in padded.items():
        assert seen.samples == alone[name].samples == 2
        assert torch.allclose(seen.square_sum, alone[name].square_sum, rtol=1e-9), name
        if seen.gram is not None and alone[name].gram is not None:
            assert torch.allclose(seen.gram, alone[name].gram, rtol=1e-9)  # type: ignore[arg-type]
