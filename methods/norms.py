"""Training of norms and biases alone (PERP, Zimmer et al. 2023, arXiv 2312.15230): no matrix and no zero is moved."""

from __future__ import annotations

from torch import nn

from vlbench.errors import UserError
from vlbench.job import Job
from vlbench.method import Method, method
from vlbench.model import Model
from vlbench.restoring.adapters import RestoreOptions, alone, refuse_large_teacher, restore

from .finetune import small_batches


@method(
    "norms",
    title="Training of norms and biases alone",
    role="restorer",
    uses_seed=True,
    paper="https://arxiv.org/abs/2312.15230",
)
class Norms(Method):
    """Trains the parameters of normalisation layers and every bias; all other weights stay bit for bit."""

    Options = RestoreOptions
    parallel = True
    recipes = {"mini": small_batches}  # noqa: RUF012

    def check_model(self, model: Model) -> None:
        if not _trained(model.net):
            raise UserError(f"{model.card.name} has neither norms nor biases: use finetune or sparselora.")
        refuse_large_teacher(model, self.options)

    def apply(self, job: Job) -> None:
        net = job.model.net
        with alone(net):
            for name in _trained(net):
                net.get_parameter(name).requires_grad_(True)
            restore(job, "norms", self.options)


def _trained(net: nn.Module) -> list[str]:
    """Names of the parameters of norms (of any library: LayerNorm, T5LayerNorm, LlamaRMSNorm ...) and of the biases."""
    return [
        f"{path}.{name}" if path else name
        for path, module in net.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if "Norm" in type(module).__name__ or name == "bias"
    ]
