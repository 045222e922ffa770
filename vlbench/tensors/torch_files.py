"""torch.save's files: tensors alone are read, and no code of a file is ever run."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .limits import refuse_bomb


def refuse_script(file: Path) -> None:
    """Raise UserError for a TorchScript archive: its tensors cannot be had without loading the code beside them."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        raise UserError(
            f"{file} is a TorchScript archive (the form in which OpenAI publishes CLIP). It holds code, and no code of "
            "a checkpoint is loaded here. If you trust it, save its tensors alone and give that file: python -c "
            f"\"import torch; torch.save(torch.jit.load('{file.name}', 'cpu').state_dict(), 'tensors.pt')\"."
        )


class _Ignored:
    """Stands in for what training programs leave beside the weights. It takes what it is given, and nothing of the
    library that the file names is imported or run; tensors are all that is read of a file."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


# mmengine writes its logs, DeiT and its descendants their arguments; numpy's arrays and numbers stand in both.
IGNORED = (
    "argparse.Namespace",
    "builtins.getattr",  # a method of mmengine's log
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)


def read_torch(file: Path) -> dict[str, Tensor]:
    """torch.save's format. Only tensors are read: an object's code is never run, and its presence is told, unless it
    is one of IGNORED."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:  # torch reads past a wrong checksum
            refuse_bomb(archive, file)
            if wrong := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {wrong} differs")
    try:
        return load_torch(file)
    except pickle.UnpicklingError as error:
        if not re.search(r"unsupported (global|class)|unrecognized function", str(error), re.IGNORECASE):
            raise ValueError("it is no pickle") from None  # torch's text advises to unpickle it all the same
        raise UserError(
            f"{file} is refused: it holds Python objects besides tensors, and reading them would run their code. "
            "Save its state dict alone (best as safetensors) and give that file."
        ) from None


def load_torch(file: Path) -> dict[str, Tensor]:
    """read_torch() without its checks of the archive. Raises UnpicklingError, or UserError for two sets of weights."""
    with torch.serialization.safe_globals([(_Ignored, name) for name in IGNORED]):
        content = torch.load(file, map_location="cpu", weights_only=True)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            _refuse_second(file, content, key)
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"it is a {type(content).__name__}, not a state dict")
    if not any(isinstance(v, Tensor) for v in content.values()):  # a state dict for each part of the model
        parts = {k: v for k, v in content.items() if isinstance(v, dict)}
        content = {f"{part}.{k}": v for part, own in parts.items() for k, v in own.items()}
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}


def _refuse_second(file: Path, content: Mapping[Any, Any], key: str) -> None:
    """Raise UserError where the file holds the same weights twice, as training programs write them with averages
    (timm's state_dict_ema, DeiT's model_ema): which of them is meant, the file does not say."""
    names = {str(name).removeprefix("module.") for name in content[key]}
    for other, value in content.items():
        if other != key and isinstance(value, dict) and names == {str(n).removeprefix("module.") for n in value}:
            raise UserError(
                f"{file} holds two sets of weights, {key} and {other}: save the one that is meant alone, as in python "
                f"-c \"import torch; torch.save(torch.load('{file.name}', 'cpu')['{other}'], 'one.pth')\"."
            )
