"""OpenVINO on the CPU, from torch.export's program without a detour over ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..runtime import Runtime, Serve, Served, Tensors, runtime
from ._traced import emptied, program


@runtime("openvino", title="OpenVINO", packages=("openvino",), extra="openvino")
class OpenVino(Runtime):
    """STAGE.xml with its weights in STAGE.bin, float32: OpenVINO would halve them when it saves, and compute in
    bfloat16 where the processor can, if it were not told."""

    def version(self) -> str:
        import openvino

        return f"openvino {openvino.__version__.split('-')[0]}"

    def refusal(self, served: Served) -> str:
        """A product over nothing loses the rows there."""
        return emptied(served, "attention", "ffn")

    def write(self, served: Served, folder: Path) -> Sequence[str]:
        import openvino

        for part in served.parts:
            model = openvino.convert_model(program(served.model, part), example_input=part.example)
            openvino.save_model(model, folder / f"{part.stage.name}.xml", compress_to_fp16=False)
        return []

    def open(self, served: Served, folder: Path, threads: int) -> Mapping[str, Serve]:
        return {part.stage.name: _opened(folder / f"{part.stage.name}.xml", threads) for part in served.parts}


def _opened(file: Path, threads: int) -> Serve:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(file, "CPU", settings)

    def serve(tensors: Tensors) -> Tensor:
        return torch.from_numpy(compiled([t.detach().cpu().numpy() for t in tensors])[0].copy())

    return serve
