"""ONNX by torch's dynamo exporter, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..runtime import Runtime, Serve, Served, Tensors, runtime
from ._traced import emptied, program


@runtime("onnx", title="ONNX Runtime", packages=("onnx", "onnxscript", "onnxruntime"), extra="onnx")
class Onnx(Runtime):
    """STAGE.onnx with its named dimensions open; weights above 2 GB lie beside it."""

    def version(self) -> str:
        """What computes is ONNX Runtime alone."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def refusal(self, served: Served) -> str:
        """Heads of no width are shapes that ONNX Runtime takes for an error; no neurons are none to it."""
        return emptied(served, "attention")

    def write(self, served: Served, folder: Path) -> Sequence[str]:
        for part in served.parts:
            names = list(part.stage.inputs)
            with torch.no_grad():
                exported = torch.onnx.export(
                    program(served.model, part), input_names=names, output_names=["output"], dynamo=True, verbose=False
                )
            assert exported is not None
            exported.save(str(folder / f"{part.stage.name}.onnx"))
        return []

    def open(self, served: Served, folder: Path, threads: int) -> Mapping[str, Serve]:
        return {part.stage.name: _opened(folder / f"{part.stage.name}.onnx", threads) for part in served.parts}


def _opened(file: Path, threads: int) -> Serve:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [tensor_in.name for tensor_in in session.get_inputs()]

    def serve(tensors: Tensors) -> Tensor:
        given = dict(zip(names, (t.detach().cpu().numpy() for t in tensors), strict=True))
        return torch.from_numpy(session.run(None, given)[0])

    return serve
