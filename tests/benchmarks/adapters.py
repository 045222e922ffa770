"""What a step of SparseLoRA costs against a step of LoRA, on one linear layer: run it, it asserts nothing.

    OMP_NUM_THREADS=1 python tests/benchmarks/adapters.py [width] [rounds]

Bounds meant, at width 4096 in fp32 on a CPU: a step of SparseLoRA within 2.0 of a step of LoRA (peft's layer, without
dropout) with 512 tokens and within 1.65 with 2,048; recompute=true within 2.4, with no copy of W kept for the backward
pass.

A step is forward, backward (the input has a gradient, as inside a model) and AdamW. Other programs on the machine move
seconds, and ratios of CPU time less: the three kinds of step follow one another, a ratio is of steps of one round, and
its median over the rounds is printed beside the ratio of the fastest steps. Kept are the bytes of the tensors that
autograd holds from forward to backward, each storage once; what lives anyway (parameters, masks, the input) is left
out.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from vlbench.nn.adapted import attach

RANK, ALPHA = 8, 16
TOKENS = (512, 2048)
KINDS = ("lora", "sparselora", "recompute")
BOUNDS = {("sparselora", 512): 2.0, ("sparselora", 2048): 1.65, ("recompute", 512): 2.4, ("recompute", 2048): 2.4}
MIB = 2**20

Step = Callable[[], None]


def made(kind: str, width: int) -> nn.Module:
    """One layer, half of its weights zero, with its adapter."""
    torch.manual_seed(0)
    layer = nn.Linear(width, width).requires_grad_(False)
    keep = torch.rand(width, width) < 0.5
    layer.weight.mul_(keep)
    if kind == "lora":
        return inject_adapter_in_model(LoraConfig(target_modules=["0"], r=RANK, lora_alpha=ALPHA), nn.Sequential(layer))
    a, b = torch.randn(RANK, width) / width, torch.randn(width, RANK)
    attach(layer, a, b, ALPHA / RANK, keep=keep, recompute=kind == "recompute")
    return layer


def stepper(layer: nn.Module, x: Tensor, dy: Tensor) -> Step:
    optimiser = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        x.grad = None
        layer(x).backward(dy)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def kept(layer: nn.Module, x: Tensor) -> int:
    """Bytes."""
    there = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters(), *layer.buffers())}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sum(found.values())


def seconds(step: Step) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def main(width: int = 4096, rounds: int = 5) -> None:
    threads = torch.get_num_threads()
    print(f"width {width}, rank {RANK}, fp32, threads {threads}, {rounds} rounds; W is {width**2 * 4 / MIB:.0f} MiB")
    for tokens in TOKENS:
        torch.manual_seed(1)
        x, dy = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)
        layers = {kind: made(kind, width) for kind in KINDS}
        steps = {kind: stepper(layer, x, dy) for kind, layer in layers.items()}
        found = [{kind: seconds(step) for kind, step in steps.items()} for _ in range(rounds + 1)][1:]
        fastest = {kind: min(one[kind] for one in found) for kind in KINDS}
        for kind in KINDS:
            paired = statistics.median(one[kind] / one["lora"] for one in found)
            bound = f", bound {BOUNDS[kind, tokens]}" if kind != "lora" else ""
            print(
                f"{tokens:5} tokens  {kind:10}  {1e3 * fastest[kind]:6.0f} ms  {paired:.2f} x LoRA (fastest "
                f"{fastest[kind] / fastest['lora']:.2f}{bound})  kept {kept(layers[kind], x) / MIB:.1f} MiB"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
