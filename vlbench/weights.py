"""Where weights come from, and reading them without unpickling anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import UserError

PATTERNS = [
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "vocab.txt",
    "tokenizer*",
    "special_tokens*",
]


def locate(checkpoint: str, revision: str, roots: Mapping[str, str]) -> Path:
    """The folder or file that a card's checkpoint or `checkpoint=` names.

    "mini:NAME" ships with the package; a path is itself; anything else is a hub id, looked up in the `weights` root
    of vlbench.toml, then in the hub's cache, then on the hub. Raises UserError that says what goes where.
    """
    if checkpoint.startswith("mini:"):
        return _mini_folder(checkpoint.removeprefix("mini:"))
    local = Path(checkpoint).expanduser()
    if local.exists():
        return local
    root = Path(roots.get("weights", "")).expanduser() if roots.get("weights") else None
    for name in (checkpoint, checkpoint.rsplit("/", 1)[-1]):
        if root is not None and (root / name).exists():
            return root / name
    if local.is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") != 1:
        raise UserError(f"checkpoint {checkpoint} does not exist: give the path of a model folder or weights file.")
    return _from_hub(checkpoint, revision)


def _from_hub(checkpoint: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(checkpoint, revision=revision, allow_patterns=PATTERNS))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"the weights {checkpoint} (revision {revision}) are not on this machine and the hub does not answer "
            f"({type(error).__name__}): download that repository, name its parent folder as weights= in vlbench.toml, "
            "or pass checkpoint=PATH."
        ) from error


def _mini_folder(name: str) -> Path:
    import importlib.util

    spec = importlib.util.find_spec("vlbench.registry.mini")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations))) / name
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"the mini weights {name} are not in this installation ({folder}): reinstall vlbench.")
    return folder


def read_weights(source: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, a safetensors file or a .pth state dict, as float32 where they are floating.

    A .pth file is read with weights_only=True; {'model': ...} and {'state_dict': ...} are looked through. Raises
    UserError for a file that is truncated, not weights, or would have to be unpickled.
    """
    files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    if not files:
        raise UserError(f"{source} holds no *.safetensors file: it is no model folder.")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(_read_file(file))
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        found = torch.load(file, map_location="cpu", weights_only=True)
        for key in ("model", "state_dict"):
            found = found[key] if isinstance(found, dict) and isinstance(found.get(key), dict) else found
        return {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be read as weights ({error}): it is damaged, truncated or another format."
        ) from None
    except Exception as error:  # torch raises its own unpickling error class, which it does not export
        raise UserError(
            f"{file} is refused: it holds Python objects besides tensors ({type(error).__name__})."
        ) from None


def load_into(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load strictly, but for keys that are tied to a present one. Raises UserError naming the first five keys that
    differ."""
    own = net.state_dict()
    shared = _tied(net)
    tensors = {**{k: tensors[s] for k, s in shared.items() if s in tensors and k not in tensors}, **tensors}
    wrong = [f"{k} is missing" for k in own if k not in tensors]
    wrong += [f"{k} is unknown" for k in tensors if k not in own]
    wrong += [
        f"{k} has shape {tuple(tensors[k].shape)}, not {tuple(v.shape)}"
        for k, v in own.items()
        if k in tensors and v.shape != tensors[k].shape
    ]
    if wrong:
        raise UserError(
            f"these weights are of another architecture: {'; '.join(wrong[:5])}"
            + (f"; and {len(wrong) - 5} more." if len(wrong) > 5 else ".")
        )
    net.load_state_dict(dict(tensors))


def _tied(net: nn.Module) -> dict[str, str]:
    """Key -> another key of the same storage, for tied parameters (safetensors stores one of them)."""
    groups: dict[int, list[str]] = {}
    for key, value in net.state_dict(keep_vars=True).items():
        groups.setdefault(value.data_ptr(), []).append(key)
    return {key: other for keys in groups.values() if len(keys) > 1 for key in keys for other in keys if other != key}


def weights_digest(net: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all parameters and buffers: what the weights are, by content."""
    sha = hashlib.sha256()
    for key, value in sorted(net.state_dict().items()):
        data = value.detach().cpu().contiguous()
        sha.update(json.dumps([key, str(data.dtype), list(data.shape)]).encode())
        sha.update(data.view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file, or of all files of a folder by name."""
    sha = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        sha.update(file.name.encode())
        with file.open("rb") as stream:
            for chunk in iter(lambda: stream.read(1 << 22), b""):
                sha.update(chunk)
    return sha.hexdigest()
