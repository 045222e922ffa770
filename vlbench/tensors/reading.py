"""Where weights come from, and reading them without unpickling anything."""

from __future__ import annotations

import errno
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..disk.paths import inside
from ..disk.storage import read_json
from ..errors import UserError
from ..machine.memory import LARGE, FilePages
from .limits import declared, refuse_giant, stored_types
from .torch_files import load_torch, read_torch, refuse_script

INDEX = "model.safetensors.index.json"
POINTER = b"version https://git-lfs"
KINDS = (".safetensors", ".pt", ".pth")
LOOKED_AT = 1 << 22  # entries of a weight at once


_BF16_STAYS: ContextVar[bool] = ContextVar("bf16_stays", default=False)


@contextmanager
def bf16_stays(wanted: bool) -> Iterator[None]:
    """Inside, weights that a file has in bfloat16 are the file's own pages (see `fill`), where `wanted`: a cell of
    precision=bf16 holds them so."""
    token = _BF16_STAYS.set(wanted)
    try:
        yield
    finally:
        _BF16_STAYS.reset(token)


def read_weights(source: Path, *, as_stored: bool = False) -> dict[str, Tensor]:
    """All tensors of a model folder, a safetensors file or a .pth state dict, as float32 where they are floating.
    as_stored: in the file's own types, and of safetensors the file's own pages, copied by nobody: for `fill`.

    A .pth file is read with weights_only=True; {'model': ...} and {'state_dict': ...} are looked through, and the
    prefixes of DistributedDataParallel and torch.compile are taken off. Raises UserError for a file that is truncated,
    not weights, or would have to be unpickled, and for weights that are not finite.
    """
    files, index = weight_files(source)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors_of_file = _without_prefixes(file, read_tensors(file))
        if index:
            tensors_of_file = {key: value for key, value in tensors_of_file.items() if index.get(key) == file.name}
        twice = sorted(tensors_of_file.keys() & tensors.keys())
        if twice:
            raise UserError(f"{source} has {twice[0]} in two files: keep the weights of one model in the folder.")
        _refuse_not_finite(file, tensors_of_file)
        tensors.update(tensors_of_file)
    if lacking := sorted(index.keys() - tensors.keys()):
        raise UserError(
            f"{source}: {index[lacking[0]]} lacks {lacking[0]}, which the index says it has: fetch it anew."
        )
    return {k: v.float() if v.is_floating_point() and not as_stored else v for k, v in tensors.items()}


def weight_files(source: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that hold the weights of a folder (or the file itself), and tensor -> file name where an index says it.

    An index decides what is read, then model.safetensors, whatever lies beside them (the same weights in another
    precision); else all *.safetensors. Raises UserError where a file that the index names is not there.
    """
    if source.is_file():
        return [source], {}
    indices = sorted(source.glob("*.safetensors.index.json"))
    usual = source / INDEX
    if usual in indices or len(indices) == 1:
        index = _read_index(usual if usual in indices else indices[0])
        names = sorted(set(index.values()))
        absent = [name for name in names if not (source / name).is_file()]
        if absent:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise UserError(
                f"{source} lacks {absent[0]}{more}, which its index names: fetch the checkpoint's "
                f"{len(names)} files of weights again."
            )
        return [source / name for name in names], index
    whole = source / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(source.glob("*.safetensors"))
    if not files:
        raise UserError(f"{source} holds no *.safetensors file: it is no model folder.")
    return files, {}


def _read_index(file: Path) -> dict[str, str]:
    content = read_json(file)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"{file} is no index of weights: it should have an object weight_map of tensor -> file.")
    return {key: inside(name, file, "file").as_posix() for key, name in files.items()}


def _without_prefixes(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without "module." before every key (DistributedDataParallel) and "_orig_mod." anywhere (torch.compile)."""
    plain = {key.replace("_orig_mod.", ""): value for key, value in tensors.items()}
    while plain and all(key.startswith("module.") for key in plain):
        plain = {key.removeprefix("module."): value for key, value in plain.items()}
    if len(plain) < len(tensors):
        raise UserError(f"{file} has tensors twice, with and without _orig_mod. in their names: keep one of each.")
    return plain


def _refuse_not_finite(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """No weight is infinite or NaN; a flipped bit, an overflow in 16 bits or a diverged training makes one, and every
    number after it is wrong."""
    large = sum(value.nbytes for value in tensors.values() if value.layout is torch.strided) > LARGE
    pages = FilePages() if large else None
    for key, value in tensors.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"{file}: {key} is sparse, quantised or without values: save it as a plain tensor.")
        if not value.is_floating_point():
            continue
        # In parts: what isfinite() makes is larger than the weights in 16 bits that it looks at.
        for part in value.flatten().split(LOOKED_AT):
            # torch asks this of no 8-bit type, and one of 64 bits may be infinite in the 32 that it is computed in.
            wide = part if part.itemsize in (2, 4) else part.float()
            if bool(wide.isfinite().all()):
                continue
            what = "values that are no numbers (NaN)" if bool(wide.isnan().any()) else "infinite values"
            raise UserError(f"{file} is damaged: {key} has {what}.")
        if pages is not None:
            pages.give_back(value)


def refuse_pointer(file: Path) -> None:
    """Raise UserError for what git leaves in place of a large file where Git LFS is not installed."""
    try:
        with file.open("rb") as stream:
            pointer = stream.read(len(POINTER)) == POINTER
    except OSError:
        return
    if pointer:
        raise UserError(f"{file} is a pointer of Git LFS, not the weights: run git lfs pull in its repository.")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one file as they are. Raises UserError naming the file, before anything is allocated where it
    declares more than it holds, or than the machine could."""
    refuse_script(file)
    refuse_pointer(file)
    try:
        refuse_giant(file, _elements(file))
        tensors = dict(load_file(file)) if file.suffix == ".safetensors" else read_torch(file)
    except UserError:
        raise
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file} cannot be read as weights ({_first_line(error)}): it is damaged, truncated or another format."
        ) from None
    if not tensors:
        raise UserError(f"{file} holds no tensors.")
    return tensors


def declared_elements(source: Path) -> int:
    """How many elements the weights of a model folder (those of its parts in folders of their own, too), or of one
    file, declare. Allocates nothing."""
    files = [source] if source.is_file() else sorted(source.rglob("*.safetensors"))
    if source.is_dir() and any(source.glob("*.safetensors")):
        files = weight_files(source)[0]
    for file in files:
        refuse_script(file)
        refuse_pointer(file)
    return sum(sum(_elements(file).values()) for file in files)


def stores(source: Path, kind: str) -> bool:
    """Whether a tensor of a model folder (or of its parts in folders of their own), or of one file, is stored in this
    type ("bf16"). Reads no weights."""
    files = [source] if source.is_file() else sorted(f for f in source.rglob("*") if f.suffix in KINDS)
    return any(kind.upper() in stored_types(file, partial(load_torch, file)) for file in files)


def _elements(file: Path) -> dict[str, int]:
    return declared(file, lambda: load_torch(file))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors from any device. Tensors that share memory are stored each by itself. Raises OSError."""
    taken: set[int] = set()
    ours: dict[str, Tensor] = {}
    for key, value in tensors.items():
        flat = value.detach().cpu().contiguous()
        place = flat.untyped_storage().data_ptr()
        ours[key] = flat.clone() if place in taken else flat
        taken.add(place)
    try:
        file.touch()
        mode = file.stat().st_mode
        save_file(ours, file)
        file.chmod(mode)  # it writes under a temporary name that nobody else may read
    except SafetensorError as error:  # "I/O error: No space left on device (os error 28) at path ..."
        message = _first_line(error).rsplit("I/O error: ", 1)[-1].split(" (os error", 1)[0]
        raise OSError(errno.EIO, message) from error


def load_into(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load strictly, but for keys that are tied to a present one. Raises UserError naming the first five keys that
    differ."""
    net.load_state_dict(_fitting(net, tensors))


def fill(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """load_into() of what `read_weights(as_stored=True)` gave, into a network that nobody has touched yet; `tensors` is
    empty afterwards. Every weight is copied once, into the network's type. Where bfloat16 stays, those are not copied
    at all: they become the network's parameters, pages of the file that are read when they are needed, and become
    memory of ours when a method writes to them."""
    fitting = _fitting(net, tensors)
    tensors.clear()
    stays = _BF16_STAYS.get()
    with torch.no_grad():
        for key, value in net.state_dict(keep_vars=True).items():
            source = fitting.pop(key)  # a file is closed with its last tensor
            if stays and isinstance(value, nn.Parameter) and source.dtype == torch.bfloat16:
                value.data = source
            else:
                value.copy_(source)


def _prefix(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """What stands before every key of the tensors, where all that follows are the network's keys; else nothing."""
    first = next(iter(state), "")
    longer = next((key for key in tensors if key.endswith(f".{first}")), first)
    prefix = longer.removesuffix(first)
    return prefix if all(k.startswith(prefix) and k.removeprefix(prefix) in state for k in tensors) else ""


def _fitting(net: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensor of every key of the network. Raises UserError where keys or shapes differ."""
    state = net.state_dict()
    if prefix := _prefix(state, tensors):
        raise UserError(f"these weights have {prefix!r} before every name: save them again without it.")
    tensors = {**_tied_to(net, tensors), **tensors}
    wrong = [f"{k} is missing" for k in state if k not in tensors]
    wrong += [f"{k} is unknown" for k in tensors if k not in state]
    wrong += [
        f"{k} has shape {tuple(tensors[k].shape)}, not {tuple(v.shape)}"
        for k, v in state.items()
        if k in tensors and v.shape != tensors[k].shape
    ]
    wrong += [
        f"{k} is of type {tensors[k].dtype}, not {v.dtype}".replace("torch.", "")
        for k, v in state.items()
        if k in tensors and v.is_floating_point() and not tensors[k].is_floating_point()
    ]
    if wrong:
        raise UserError(f"these weights are of another architecture: {_first_five(wrong)}")
    return tensors


def refuse_others(tensors: Mapping[str, Tensor], family: str, needed: Sequence[str]) -> None:
    """Raise UserError, naming the first five keys that differ, where weights lack keys that every model of a family
    ("a CLIP") has: before a configuration or a vocabulary is asked for, which would not help."""
    missing = [key for key in needed if key not in tensors]
    if not missing:
        return
    parts = {key.split(".")[0] for key in needed}
    wrong = [f"{key} is missing" for key in missing]
    wrong += [f"{key} is unknown" for key in tensors if key.split(".")[0] not in parts]
    raise UserError(f"these are no weights of {family}: {_first_five(wrong)}")


def _first_five(wrong: Sequence[str]) -> str:
    return "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more." if len(wrong) > 5 else ".")


def _tied_to(net: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of the keys that are absent and tied to a present one (a file has each storage once). Raises UserError
    where the weights have two values for one tensor of the network."""
    groups: dict[tuple[int, torch.Size], list[str]] = {}
    for key, value in net.state_dict(keep_vars=True).items():
        if value.numel():  # empty tensors all lie at 0 and are not tied
            groups.setdefault((value.data_ptr(), value.shape), []).append(key)
    twins: dict[str, Tensor] = {}
    for keys in groups.values():
        present = [key for key in keys if key in tensors]
        for key in present[1:]:
            one, other = tensors[present[0]], tensors[key]
            if one.shape == other.shape and not torch.equal(one, other.to(one.dtype)):
                raise UserError(
                    f"{present[0]} and {key} are one matrix by config.json, and two different ones in the file: "
                    "correct tie_word_embeddings there."
                )
        if present:
            twins.update({key: tensors[present[0]] for key in keys if key not in tensors})
    return twins


def weights_digest(net: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all parameters and buffers: what the weights are, by content."""
    sha = hashlib.sha256()
    for key, value in sorted(net.state_dict().items()):
        data = value.detach().cpu().contiguous()
        sha.update(json.dumps([key, str(data.dtype), list(data.shape)]).encode())
        sha.update(data.view(-1).view(torch.uint8).numpy() if data.numel() else b"")
    return sha.hexdigest()
