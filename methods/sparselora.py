"""SparseLoRA (He et al. 2024, arXiv 2404.02424): low-rank adapters under the mask, which merging does not fill.

    y = ((W + alpha / r * B A) * M) x + b            M: True where the pruner kept a weight

(SparseLoRA of ICML 2025, arXiv 2506.16500, is another thing: it speeds up LoRA by sparse activations and leaves the
model dense.)
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vlbench.job import Job
from vlbench.method import Context, Method, method
from vlbench.model import Model
from vlbench.restoring.adapters import (
    AdapterOptions,
    alone,
    attach_new,
    drawn,
    merge,
    placed,
    pruned_towers,
    refuse_misplaced,
    restore,
    verify_zeros,
)

from .finetune import small_batches

CAPTIONS = 25_000  # that RESSA trains on, once


def paper(context: Context) -> dict[str, Any]:
    """What RESSA's published code does, whatever its configuration says: ranks of ViT, language model and Q-Former;
    batches of 64, with Vicuna of 32; a constant rate (its scheduler's cosine starts with the second epoch; its first
    step's 1e-6 is left out); no weight decay, warm-up or clipping; 0.9 of cross entropy and 0.1 of the divergence at
    temperature 1, which are the defaults; dropout is configured as 0.05 and never applied. Its divergence is summed
    over all tokens, padding too, and divided by the batch; here it is the mean over the tokens that are told.
    """
    batch = int(context.says("ressa").get("batch", 64))
    return {
        "ranks": "vision?:4,language?:8,qformer?:2", "alpha": 16.0, "dropout": 0.0, "loss": "both",
        "steps": CAPTIONS // batch, "batch_size": batch, "lr": 1e-4, "decay": "constant", "warmup": 0,
        "weight_decay": 0.0, "clip": 0.0,
    }  # fmt: skip


class SparseLoraOptions(AdapterOptions):
    """Where a matrix has no mask (a tower that was cut, or left dense) the adapter stands beside it, as LoRA's."""

    recompute: bool = Field(
        False, description="build (W + B A) * M again in the backward pass: no second copy of the weights is kept"
    )


@method(
    "sparselora",
    title="SparseLoRA (arXiv 2404.02424): adapters under the mask, merged, zeros kept",
    role="restorer",
    uses_seed=True,
    paper="https://arxiv.org/abs/2404.02424",
)
class SparseLora(Method):
    """Trains A and B alone; weights, biases and norms stay. Merging keeps every zero and every n:m pattern, which is
    verified. Dropout leaves out columns of A, the same for all tokens of a step."""

    Options = SparseLoraOptions
    parallel = True
    recipes = {"mini": small_batches, "paper": paper}  # noqa: RUF012

    def check_model(self, model: Model) -> None:
        refuse_misplaced(model, self.options)

    def apply(self, job: Job) -> None:
        net, options = job.model.net, self.options
        ranks = placed(job.model, options, pruned_towers(job.changes.structure, job.changes.state))
        with alone(net):
            with drawn(job.here.seed):
                attach_new(net, ranks, options, job.changes.state.masks, recompute=options.recompute)
            restore(job, "sparselora", options)
        merge(net, ranks)
        verify_zeros(net, job.changes.state)
