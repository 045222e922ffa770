"""What calibration costs against plain forward passes, and metrics, masks and SparseGPT on a large matrix: run it, it
asserts nothing.

    OMP_NUM_THREADS=1 python tests/benchmarks/calibration.py [samples]

Bounds meant: Wanda over a 12-block model of width 768 within 1.3 of two forward passes over the same 128 samples, and
1.5 blocks' activations plus statistics more memory; metric and mask of a 4096 x 4096 matrix in 0.5 s on two cores,
SparseGPT on it in 20 s. Other programs on the machine move seconds, and ratios less: passes and pruning alternate.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import timm.models.vision_transformer as timm_vit
import torch
from torch import Tensor, nn

from vlbench.nn import timm as adopted
from vlbench.pruning.calibration import Statistics, calibrate
from vlbench.pruning.masks import Keep, apply_masks
from vlbench.pruning.obs import sweep
from vlbench.structure import Block, Structure

SAMPLES = 128


def model() -> tuple[nn.Module, Structure]:
    """ViT-B at 224 px with patches of 16: 12 blocks of width 768, 197 tokens."""
    torch.manual_seed(0)
    net = timm_vit.VisionTransformer(embed_dim=768, depth=12, num_heads=12).eval()
    adopted.adopt(net)
    return net, Structure((adopted.vision_tower(net),))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """(wall clock, CPU time of this process)."""
    wall, used = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - wall, time.process_time() - used


class Peak:
    """The resident memory of this process above what it was, in MB, sampled fifty times a second."""

    def __enter__(self) -> Peak:
        self.start, self.top, self.on = self.now(), 0.0, True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.on = False
        self.thread.join()

    def _watch(self) -> None:
        while self.on:
            self.top = max(self.top, self.now() - self.start)
            time.sleep(0.02)

    @staticmethod
    def now() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 1e6


def wanda(net: nn.Module, structure: Structure, runs: list[Callable[[], object]]) -> None:
    def prune(_: Block, seen: Mapping[str, Statistics]) -> None:
        for name, one in seen.items():
            score = net.get_parameter(name).detach().abs() * one.norm.float()
            apply_masks(net, {name: Keep(0.5, "row")(score)})

    calibrate(net, structure, runs, prune)


def forward(net: nn.Module, images: list[Tensor]) -> None:
    with torch.no_grad():
        for image in images:
            net(image)


def over_a_model(samples: int) -> None:
    net, structure = model()
    images = [torch.randn(1, 3, 224, 224) for _ in range(samples)]
    runs: list[Callable[[], object]] = [partial(net, image) for image in images]
    forward(net, images[:4])
    first = seconds(lambda: forward(net, images))
    with Peak() as peak:
        pruned = seconds(lambda: wanda(net, structure, runs))
    second = seconds(lambda: forward(net, images))
    for what, at in (("wall clock", 0), ("CPU time", 1)):
        passes = first[at] + second[at]
        print(f"Wanda, {samples} samples: {pruned[at]:.1f} s of {what}, {pruned[at] / passes:.2f} x two forward passes")
    block = samples * 197 * 768 * 4 / 1e6
    print(f"  peak extra memory {peak.top:.0f} MB = {peak.top / block:.2f} x one block's activations ({block:.0f} MB)")


def on_a_matrix(width: int = 4096) -> None:
    weight = torch.randn(width, width)
    seen = Statistics.zeros(width, weight.device, gram=True)
    seen.add(torch.randn(1, 2 * width, width))
    score = weight.abs() * seen.norm.float()
    for what, work in (
        ("Wanda, rows", lambda: Keep(0.5, "row")(weight.abs() * seen.norm.float())),
        ("Wanda, 2:4", lambda: Keep(0.5, n_m=(2, 4))(weight.abs() * seen.norm.float())),
        ("magnitude, matrix", lambda: Keep(0.5)(weight.abs())),
        ("a stable sort of the rows, as in Wanda's code", lambda: score.sort(dim=1, stable=True)),
    ):
        work()
        print(f"{what}, {width} x {width}: {min(seconds(work) for _ in range(3))[0]:.2f} s")
    assert seen.gram is not None
    for name, gram in (("float64", seen.gram), ("float32", seen.gram.float())):
        wall, used = seconds(lambda gram=gram: sweep(weight, gram, Keep(0.5)))  # type: ignore[misc]
        print(f"SparseGPT in {name}, {width} x {width}: {wall:.1f} s ({used:.1f} s of CPU time)")


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads")
    over_a_model(int(sys.argv[1]) if len(sys.argv) > 1 else SAMPLES)
    on_a_matrix()
