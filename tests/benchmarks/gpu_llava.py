"""Part of `make gpu-check`: what pruning a language-model VLM of 7B parameters by Wanda takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.common import Bench
from tests.benchmarks.gpu_rows import Row, amount, at_its_peak, bytes_held, failed, gigabytes
from tests.calibration.pruned import calibrate
from vlbench.calibration.statistics import Statistics
from vlbench.compression.masks import Keep, apply_masks
from vlbench.structure import Block

LLAVA = ("llava-1.5-7b", "llava-mini")
SAMPLES, LENGTH = 128, 2048  # of a calibration, as in Wanda's paper
WORDS, FEWEST = 32_000, 32  # whose embeddings are there, at real size and in the mini world


def calibrated(bench: Bench) -> Iterator[Row]:
    """LLaVA-1.5-7B in bf16, 128 samples of 2,048 tokens (the image's first) as in Wanda's paper. On an H200 its 3.4
    PFLOP a pass and two passes a block are 8.6 s at least."""
    model = bench.model(LLAVA)
    model.net.bfloat16()
    dense = {name: model.net.get_parameter(name).detach().to("cpu", copy=True) for name in model.structure().matrices}
    for label, keep in (("50%", Keep(0.5, "row")), ("2:4", Keep(0.5, n_m=(2, 4)))):
        try:
            yield _wanda(bench, model, label, keep)
        except Exception as error:
            yield failed(f"Wanda LLaVA {label}", error)
        with torch.no_grad():
            for name, weight in dense.items():
                model.net.get_parameter(name).copy_(weight)


def _wanda(bench: Bench, model: Any, label: str, keep: Keep) -> Row:
    gone: dict[str, float] = {}

    def prune(block: Block, seen: Mapping[str, Statistics]) -> None:
        for name, one in seen.items():
            mask = keep(model.net.get_parameter(name).detach().float().abs() * one.norm.float())
            apply_masks(model.net, {name: mask})
            gone[name] = 1 - float(mask.float().mean())

    runs = [partial(_read, model, image, bench) for image in _calibration(bench, model)]
    held = bytes_held(bench)
    bench.sync()
    start = time.perf_counter()
    _, peak = at_its_peak(bench, lambda: calibrate(model.net, model.structure(), runs, prune))
    bench.sync()
    took, every = time.perf_counter() - start, set(model.structure().matrices) == gone.keys()
    half = every and all(abs(share - 0.5) < 0.01 for share in gone.values())
    told = (
        f"{took:.1f} s, {gigabytes(peak - held)} beside {gigabytes(held)}; {len(gone)} matrices, all half zero: {half}"
    )
    return Row(f"Wanda LLaVA {label}", told, "<= 30 s, all half zero", half and (bench.tiny or took <= 30))


def _calibration(bench: Bench, model: Any) -> list[Tensor]:
    """Noise in the place of photographs: of random weights one is as good as the other."""
    side = model.card.image.size
    return [torch.randn(1, 3, side, side, device=bench.device).bfloat16() for _ in range(amount(bench, SAMPLES))]


@torch.no_grad()
def _read(model: Any, image: Tensor, bench: Bench) -> None:
    """An image and words behind it."""
    tokens = model.encode(image)
    count = max(1, (8 if bench.tiny else LENGTH) - tokens.shape[1])
    ids = torch.arange(count, device=bench.device)[None] % (FEWEST if bench.tiny else WORDS)
    model.language.net(inputs_embeds=torch.cat([tokens, model.language.embed(ids).to(tokens)], 1), use_cache=False)
