"""Where weights lie: a folder, a file, the hub's cache, the package's mini weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ..disk.digests import MANIFEST, file_digest
from ..errors import UserError

PATTERNS = [
    "config.json",
    "open_clip_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "vocab.txt",
    "tokenizer*",
    "special_tokens*",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "added_tokens.json",
    "qformer_tokenizer/*",
    "chat_template.*",
    "processor_config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "variant.yml",
    *(f"{part}/*" for part in ("llm", "vision_tower", "mm_projector")),
]


# What families read beside a checkpoint that is a single file, where it is there: tokenizers and prompt templates, too.
# (The first five come first as they always did: the digest is of their order.)
BESIDE = (
    *("config.json", "open_clip_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    *(pattern for pattern in PATTERNS if ".safetensors" not in pattern),
)


def locate(checkpoint: str, revision: str, roots: Mapping[str, str]) -> Path:
    """The folder or file that a card's checkpoint or `checkpoint=` names.

    "mini:NAME" ships with the package; a path is itself; anything else is a hub id, looked up in the `weights` root
    of vlbench.toml, then in the hub's cache, then on the hub. Raises UserError that says what goes where.
    """
    if checkpoint.startswith("mini:"):
        return _mini_folder(checkpoint.removeprefix("mini:"))
    local = _expanded(checkpoint)
    if local.exists():
        return _plain(local)
    root = Path(roots.get("weights", "")).expanduser() if roots.get("weights") else None
    for name in (checkpoint, checkpoint.rsplit("/", 1)[-1]):
        if root is not None and (root / name).exists():
            return _plain(root / name)
    if local.is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") != 1:
        raise UserError(f"checkpoint {checkpoint} does not exist: give the path of a model folder or weights file.")
    return _from_hub(checkpoint, revision)


def _expanded(checkpoint: str) -> Path:
    try:
        return Path(checkpoint).expanduser()
    except RuntimeError:
        raise UserError(f"checkpoint {checkpoint} names the home of a user who does not exist: give a path.") from None


def _plain(place: Path) -> Path:
    """`place`. Raises UserError for a pipe, a socket or a device, there or among a folder's files and those of its
    parts: it would be waited for without end."""
    inside = [*place.iterdir(), *place.glob("*/*")] if place.is_dir() else [place]
    for path in inside:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is no file but a pipe, a socket or a device: give weights in a file.")
    return place


def _from_hub(checkpoint: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(checkpoint, revision=revision, allow_patterns=PATTERNS))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
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


def checkpoint_digest(path: Path) -> str:
    """file_digest of a model folder, or of a single file together with what is read beside it. Of a compressed model,
    that of its manifest, which has the digests of its files: what lies there besides (a loader) does not count."""
    if (path / MANIFEST).is_file():
        return file_digest(path / MANIFEST)
    home = path.parent
    beside = dict.fromkeys(f for name in BESIDE for f in sorted(home.glob(name)) if f.is_file() and path.is_file())
    parts = [f"{file.relative_to(home).as_posix()}\0{file_digest(file)}" for file in beside]
    return hashlib.sha256("\n".join([file_digest(path), *parts]).encode()).hexdigest() if parts else file_digest(path)
