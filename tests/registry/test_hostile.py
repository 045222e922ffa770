"""Folders that want more than to be read, of every family: nothing of them is run, unpickled or fetched.

Oracle: a mark that their code would leave, sockets that only raise, and the model of the same folder without the harm.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.registry import test_encoders, test_llave, test_prismatic, test_vila
from tests.registry.folders import FOLDERS
from vlbench.compression.saved import open_checkpoint
from vlbench.errors import UserError
from vlbench.plugins.table import table
from vlbench.tensors.locate import locate
from vlbench.tensors.reading import weights_digest

Write = Callable[[Path], Any]
MINIS = (
    "blip-caption-mini", "blip-nlvr-mini", "blip-retrieval-mini", "blip-vqa-mini", "blip2-mini", "clip-mini",
    "deit-mini", "internvl-mini", "llava-mini", "qwen-mini", "segmenter-mini",
)  # fmt: skip


def _mini(name: str) -> Write:
    return lambda folder: shutil.copytree(locate(f"mini:{name}", "main", {}), folder, dirs_exist_ok=True)


# Card -> what writes a whole folder of it.
GOOD: dict[str, Write] = {
    **{name: _mini(name) for name in MINIS},
    **{made.name: made.write for made in FOLDERS},
    **{name: test_encoders.KINDS[name] for name in ("siglip2-base-224", "dinov2-small", "dinov3-vits16")},
    "vila1.5-3b": test_vila.folder_of,
    "llave-0.5b": test_llave.folder_of,
    "prism-dinosiglip-224px-7b": lambda folder: test_prismatic.folder_of("dinosiglip", folder),
}
RECORDED = {
    "vila1.5-3b": test_vila.TINY,
    "llave-0.5b": test_llave.TINY,
    "prism-dinosiglip-224px-7b": test_prismatic.TINY,
}


@dataclass
class Watch:
    """What a folder tried. mark: a file that its code would write."""

    mark: Path
    reached: list[Any] = field(default_factory=list)

    def deny(self, *where: Any, **_: Any) -> Any:
        self.reached.append(where)
        raise OSError("no network here")


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    made = Watch(tmp_path / "ran")
    for place, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
        monkeypatch.setattr(place, name, made.deny)
    monkeypatch.setattr("builtins.input", made.deny)  # transformers asks whether to run a folder's code
    return made


@pytest.fixture(scope="module", params=GOOD)
def good(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name: str = request.param
    if name in RECORDED and not RECORDED[name].is_dir():
        pytest.skip("the recorded checkpoint is not beside this checkout")
    folder = tmp_path_factory.mktemp("good") / "model"
    folder.mkdir()
    GOOD[name](folder)
    return name, folder


def opened(name: str, folder: Path) -> tuple[str, Any]:
    """Digest of the weights, and the tokenizer's words."""
    cls = table("models").get(name).load()
    model = open_checkpoint(cls, next(c for c in cls.cards if c.name == name), locate(str(folder), "main", {}))[0]
    tokenizer = getattr(model, "tokenizer", None)
    tokenizer = getattr(tokenizer, "words", tokenizer)
    return weights_digest(model.net), tokenizer and tokenizer.get_vocab()


# What harms a folder -----------------------------------------------------------------------------------------------


def _merged(file: Path, **more: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**content, **more}))


def config(**more: Any) -> Callable[[Path, Path], None]:
    """These entries in config.json, its parts, and the other files of settings."""

    def harm(folder: Path, mark: Path) -> None:
        (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: ...\n")
        for file in folder.rglob("config.json"):
            content = json.loads(file.read_text())
            parts = {key: {**value, **more} for key, value in content.items() if isinstance(value, dict)}
            file.write_text(json.dumps({**content, **parts, **more}))
        for name in ("preprocessor_config.json", "processor_config.json", "generation_config.json"):
            if (folder / name).is_file():
                _merged(folder / name, **more)

    return harm


def words(**more: Any) -> Callable[[Path, Path], None]:
    """These entries in tokenizer_config.json."""

    def harm(folder: Path, mark: Path) -> None:
        for home in [file.parent for file in folder.rglob("tokenizer_config.json")] or [folder]:
            (home / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: ...\n")
            _merged(home / "tokenizer_config.json", **more)

    return harm


def template(text: str) -> Callable[[Path, Path], None]:
    def harm(folder: Path, mark: Path) -> None:
        (folder / "chat_template.jinja").write_text(text)
        words(chat_template=text)(folder, mark)

    return harm


class Pickled:
    """Writes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def pickled(name: str) -> Callable[[Path, Path], None]:
    """The weights are a pickle under that name."""

    def harm(folder: Path, mark: Path) -> None:
        for file in list(folder.rglob("*.safetensors")):
            file.unlink()
            (file.parent / name).write_bytes(pickle.dumps({"model": Pickled(mark)}))

    return harm


def indexed(target: str) -> Callable[[Path, Path], None]:
    """An index that names a file elsewhere, or one that would be unpickled."""

    def harm(folder: Path, mark: Path) -> None:
        (folder.parent / "outside.safetensors").write_bytes(pickle.dumps(Pickled(mark)))
        for file in list(folder.rglob("*.safetensors")):
            with safe_open(file, "np") as tensors:
                index = {"weight_map": dict.fromkeys(tensors.keys(), target)}
            (file.parent / "model.safetensors.index.json").write_text(json.dumps(index))
            (file.parent / "weights.bin").write_bytes(pickle.dumps({"model": Pickled(mark)}))

    return harm


def linked(folder: Path, mark: Path) -> None:
    """Weights that are a link to a pickle outside."""
    outside = folder.parent / "outside.bin"
    outside.write_bytes(pickle.dumps(Pickled(mark)))
    for file in list(folder.rglob("*.safetensors")):
        file.unlink()
        file.symlink_to(outside)


def piped(folder: Path, mark: Path) -> None:
    """Weights that are a pipe, behind a link."""
    os.mkfifo(folder.parent / "pipe")
    for file in list(folder.rglob("*.safetensors")):
        file.unlink()
        file.symlink_to(folder.parent / "pipe")


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
OWN = ["own.Own", "own.Own"]
REMOTE = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoImageProcessor"), "own.Own")
# Harm -> whether it has to be refused by every family; what is no part of what a family reads may be passed over.
HARM: dict[str, tuple[Callable[[Path, Path], None], bool]] = {
    "checkpoint_path": (config(model_args={"checkpoint_path": "/evil.pth"}, checkpoint_path="/evil.pth"), False),
    "hub architecture": (config(architecture="hf-hub:evil/x", timm_model_name="hf-hub:evil/x"), False),
    "local architecture": (config(architecture="local-dir:/evil", backbone="evil/x", use_timm_backbone=True), False),
    "remote code": (config(auto_map={**REMOTE, "AutoTokenizer": OWN}, trust_remote_code=True), False),
    "kernel": (config(attn_implementation="evil/kernel"), True),
    "kernels": (config(_experts_implementation={"": "evil/kernel:own"}), True),
    "flash": (config(_attn_implementation="flash_attention_2"), False),
    "other repository": (config(_name_or_path="evil/x", name_or_path="evil/x", hf_model_name="evil/x"), False),
    "tokenizer's code": (words(tokenizer_class="Own", auto_map={"AutoTokenizer": OWN}, trust_remote_code=True), False),
    "tokenizer's files": (words(tokenizer_file="/etc/passwd", vocab_file="../x", name_or_path="evil/x"), False),
    "tokenizer's class": (words(tokenizer_class="MistralCommonBackend"), False),
    "template's code": (template("{{ ''.__class__.__mro__[1].__subclasses__() }}"), False),
    "template's file": (template("{% include '/etc/passwd' %}"), False),
    "template's loop": (template(LOOP), False),
    "template's depth": (template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"), False),
    "template's sum": (template("{{ 1 / 0 }}{{ range(10 ** 9) }}"), False),
    "index outside": (indexed("../outside.safetensors"), True),
    "index absolute": (indexed("/etc/passwd"), True),
    "index of a pickle": (indexed("weights.bin"), False),
    "pickle": (pickled("pytorch_model.bin"), True),
    "pickle as safetensors": (pickled("model.safetensors"), True),
    "link": (linked, True),
    "pipe": (piped, True),
}  # fmt: skip


def test_nothing_of_a_folder_runs_or_reaches_out(good: tuple[str, Path], watch: Watch, tmp_path: Path) -> None:
    """Refused by one sentence, or the model of the whole folder."""
    name, source = good
    whole = opened(name, source)
    assert not watch.reached
    for number, (harm, (apply, refused)) in enumerate(HARM.items()):
        folder = tmp_path / str(number) / "model"
        shutil.copytree(source, folder)
        apply(folder, watch.mark)
        try:
            found: Any = opened(name, folder)
        except UserError as error:
            found = error
        assert isinstance(found, UserError) or (found == whole and not refused), harm
        assert not watch.mark.exists(), harm
        assert not watch.reached, (harm, watch.reached)


def test_the_harm_is_real(watch: Watch, tmp_path: Path) -> None:
    """What watches sees code that is unpickled, code that is imported, and a socket."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    pickled("weights.bin")(folder, watch.mark)
    pickle.loads((folder / "weights.bin").read_bytes())
    assert watch.mark.exists()
    watch.mark.unlink()
    words()(folder, watch.mark)
    exec(compile((folder / "own.py").read_text(), "own.py", "exec"))
    assert watch.mark.exists()
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("localhost", 9))
    assert watch.reached
