"""What a step of SparseLoRA costs against a step of LoRA, on one linear layer: run it, it asserts nothing.

    OMP_NUM_THREADS=1 python tests/benchmarks/adapters.py [width] [repeats]

Bounds meant, at width 4096 in fp32 on a CPU: a SparseLoRA step within 2.0 of a LoRA step with 512 tokens and within 1.65
with 2,048; recompute=true within 2.4, with no copy of W kept for the backward pass.

A step is forward, backward (the input has a gradient, as inside a model) and AdamW. Other programs on the machine move
seconds, and ratios of CPU time less: the three kinds of step follow one another, a ratio is of steps of one round, and
its median over the rounds is printed, with that of each kind's fastest step. Bytes are those of the tensors that
autograd keeps from forward to backward, each storage once, what lives anyway (parameters, masks, the input) left out.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vlbench.nn.adapted import attach

RANK, SCALING = 8, 2.0
TOKENS = (512, 2048)
BOUNDS = {("sparselora", 512): 2.0, ("sparselora", 2048): 1.65, ("recompute", 512): 2.4, ("recompute", 2048): 2.4}


def layer(kind: str, width: int) -> nn.Linear:
    """Half of the weights are zero."""
    torch.manual_seed(0)
    made = nn.Linear(width, width).requires_grad_(False)
    keep = torch.rand(width, width) < 0.5
    made.weight.mul_(keep)
    a, b = torch.randn(RANK, width) / width, torch.randn(width, RANK)
    attach(made, a, b, SCALING, keep=None if kind == "lora" else keep, recompute=kind == "recompute")
    return made


def stepper(made: nn.Linear, x: Tensor, dy: Tensor) -> Callable[[], None]:
    optimiser = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        x.grad = None
        made(x).backward(dy)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def kept_bytes(made: nn.Linear, x: Tensor) -> int:
    """Of what the forward pass keeps for the backward pass and would not be there without."""
    there = {t.untyped_storage().data_ptr() for t in (x, *made.parameters(), *made.buffers())}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = made(x)
    del y
    return sum(found.values())


def seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def main() -> None:
    width, repeats = (
        (int(word) for word in [*sys.argv[1:], "4096", "5"][:2]) if len(sys.argv) < 3 else map(int, sys.argv[1:3])
    )
    print(
        f"width {width}, rank {RANK}, fp32, {torch.get_num_threads()} thread(s), {repeats} rounds; W is {width**2 * 4 / 2**20:.0f} MiB"
    )
    for tokens in TOKENS:
        torch.manual_seed(1)
        x, dy = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)
        layers = {kind: layer(kind, width) for kind in ("lora", "sparselora", "recompute")}
        steps = {kind: stepper(made, x, dy) for kind, made in layers.items()}
        rounds = [{kind: seconds(step) for kind, step in steps.items()} for _ in range(repeats + 1)][1:]
        for kind, made in layers.items():
            best = min(r[kind] for r in rounds)
            paired = statistics.median(r[kind] / r["lora"] for r in rounds)
            fastest = best / min(r["lora"] for r in rounds)
            bound = BOUNDS.get((kind, tokens))
            print(
                f"{tokens:5} tokens  {kind:10}  {1e3 * best:7.0f} ms  {paired:.2f} x LoRA (fastest {fastest:.2f}"
                f"{f', bound {bound}' if bound else ''})  kept {kept_bytes(made, x) / 2**20:.1f} MiB"
            )


if __name__ == "__main__":
    main()
