"""Reading weights from anywhere without running anything, and telling what is wrong with them."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shutil
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vlbench.disk.digests import file_digest
from vlbench.errors import UserError
from vlbench.tensors import reading as weights
from vlbench.tensors.locate import checkpoint_digest, locate
from vlbench.tensors.reading import (
    bf16_stays,
    fill,
    load_into,
    read_weights,
    save_tensors,
    weights_digest,
)


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.file,)


def state() -> dict[str, torch.Tensor]:
    return {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}


def sentence(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_weights(source)
    told = str(caught.value)
    assert str(source) in told
    assert "\n" not in told
    assert "\x1b" not in told
    return told


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_read_through_their_wrapping(tmp_path: Path, wrap: Any, zipped: bool) -> None:
    torch.save(wrap(state()), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "a.pth")
    assert found.keys() == {"w", "n"}
    assert torch.equal(found["w"], state()["w"])


def test_half_precision_becomes_float32_and_integers_stay(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, dtype=torch.float16), "n": torch.tensor(3)}, tmp_path / "model.safetensors")
    found = read_weights(tmp_path)
    assert found["w"].dtype == torch.float32
    assert found["n"].dtype == torch.int64


@pytest.mark.parametrize("zipped", [True, False])
def test_an_object_in_a_torch_file_is_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    torch.save(
        {"model": state(), "args": Trap(tmp_path / "sprung")}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped
    )
    assert "is refused: it holds Python objects besides tensors" in sentence(tmp_path / "a.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "old.pth"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_told(tmp_path: Path, name: str, part: float) -> None:
    file, big = tmp_path / name, {"w": torch.rand(400)}
    if name == "a.safetensors":
        save_file(big, file)
    else:
        torch.save(big, file, _use_new_zipfile_serialization=name == "a.pth")
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * part)])
    assert "cannot be read as weights" in sentence(file)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.bin"])
@pytest.mark.parametrize("data", [b"hello world, this is no model", b"\x80\x02}q\x00.", bytes(range(256)) * 9])
def test_another_format_is_told(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert re.search("cannot be read as weights|holds no tensors", sentence(tmp_path / name))


def test_a_flipped_bit_in_a_torch_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"w": torch.rand(400)}, file)
    with zipfile.ZipFile(file) as archive:
        place = next(i for i in archive.infolist() if "/data/" in i.filename).header_offset + 800
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    assert "checksum" in sentence(file)


def test_values_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.tensor([float("nan")])}, tmp_path / "m.safetensors")
    assert "b has values that are no numbers" in sentence(tmp_path / "m.safetensors")
    save_file({"a": torch.tensor([1.0, float("-inf")]), "b": torch.ones(1)}, tmp_path / "m.safetensors")
    assert "a has infinite values" in sentence(tmp_path / "m.safetensors")


def test_a_tensor_instead_of_a_state_dict_is_told(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "a.pth")
    assert "it is a list, not a state dict" in sentence(tmp_path / "a.pth")


def test_two_models_in_one_folder_are_told(tmp_path: Path) -> None:
    for name in ("weights", "weights.fp16"):
        save_file(state(), tmp_path / f"{name}.safetensors")
    assert "has n in two files" in sentence(tmp_path)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    assert "holds no *.safetensors file" in sentence(tmp_path)


class Tied(nn.Module):
    """Three names of one matrix, as T5's embeddings, and two empty buffers, which are not tied."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 4, bias=False) for _ in range(3))
        self.b.weight = self.c.weight = self.a.weight
        self.register_buffer("none", torch.empty(0))
        self.register_buffer("nil", torch.empty(0))
        self.scale = nn.Parameter(torch.tensor(2.0))


@pytest.mark.parametrize("kept", ["a", "b", "c"])
def test_any_one_name_of_a_tied_matrix_is_enough(kept: str) -> None:
    net, value = Tied(), torch.rand(4, 3)
    load_into(net, {f"{kept}.weight": value, "none": torch.empty(0), "nil": torch.empty(0), "scale": torch.tensor(1.0)})
    assert torch.equal(net.c.weight, value)
    with pytest.raises(UserError, match="nil is missing"):
        load_into(net, {f"{kept}.weight": value, "none": torch.empty(0), "scale": torch.tensor(1.0)})


def test_two_names_of_a_tied_matrix_with_two_values_are_told() -> None:
    """Which of them is meant, neither the configuration nor the file says; accuracies differ."""
    rest = {"none": torch.empty(0), "nil": torch.empty(0), "scale": torch.tensor(1.0)}
    with pytest.raises(UserError, match="are one matrix by config"):
        load_into(Tied(), {"a.weight": torch.ones(4, 3), "c.weight": torch.zeros(4, 3), **rest})
    load_into(Tied(), {"a.weight": torch.ones(4, 3), "c.weight": torch.ones(4, 3), **rest})


def test_keys_that_differ_are_named() -> None:
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    with pytest.raises(UserError) as caught:
        load_into(net, {"0.weight": torch.ones(3, 2), "head": torch.ones(1)})
    told = str(caught.value)
    assert "0.bias is missing; 1.weight is missing" in told
    assert "and 4 more." in told
    before = weights_digest(net)
    with pytest.raises(UserError, match=r"these weights have 'a\.b\.' before every name"):
        load_into(net, {f"a.b.{key}": value for key, value in net.state_dict().items()})
    with pytest.raises(UserError, match=r"0\.weight has shape \(3, 2\), not \(2, 2\)"):
        load_into(net, {**net.state_dict(), "0.weight": torch.ones(3, 2)})
    assert weights_digest(net) == before


def test_the_digest_is_of_names_types_shapes_and_bits() -> None:
    net = Tied()
    digests = {weights_digest(net)}
    with torch.no_grad():
        net.scale.add_(1e-6)  # a tensor without dimensions counts too
    digests.add(weights_digest(net))
    digests.add(weights_digest(net.half()))
    net.scale = nn.Parameter(net.scale.detach().view(1))
    digests.add(weights_digest(net))
    assert len(digests) == 4
    assert weights_digest(net) in digests


def test_a_file_is_what_it_holds_and_a_folder_what_makes_the_model(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    save_file(state(), tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "config.json").write_text("{}")
    folder, file = file_digest(tmp_path / "m"), file_digest(tmp_path / "m" / "model.safetensors")
    (tmp_path / "m").rename(tmp_path / "other")
    (tmp_path / "other" / "README.md").write_text("now with a card")
    (tmp_path / "other" / ".cache").mkdir()
    (tmp_path / "other" / ".cache" / "x.json").write_text("{}")
    assert file_digest(tmp_path / "other") == folder
    (tmp_path / "other" / "words").mkdir()
    (tmp_path / "other" / "words" / "merges.txt").write_text("a b")  # what a stranger's family may read
    assert file_digest(tmp_path / "other") != folder
    shutil.rmtree(tmp_path / "other" / "words")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "other" / "another.safetensors")
    assert file_digest(tmp_path / "other" / "another.safetensors") == file
    (tmp_path / "other" / "config.json").write_text("{ }")
    assert file_digest(tmp_path / "other") != folder


def test_tensors_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    whole = torch.arange(8.0)
    given = {"whole": whole, "again": whole, "part": whole[4:], "turned": whole.view(2, 4).t(), "none": torch.empty(0)}
    save_tensors(tmp_path / "a.safetensors", given)
    found = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[k], v) for k, v in given.items())


def test_others_may_read_what_is_saved(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    save_tensors(tmp_path / "a.safetensors", state())
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_full_disk_is_an_oserror_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28) at path "x"')

    monkeypatch.setattr(weights, "save_file", refuse)
    with pytest.raises(OSError) as caught:
        save_tensors(tmp_path / "a.safetensors", state())
    assert caught.value.strerror == os.strerror(errno.ENOSPC)


def test_a_checkpoint_is_looked_for_where_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "blip-vqa").mkdir()
    assert locate("Salesforce/blip-vqa", "main", {"weights": str(tmp_path)}) == tmp_path / "blip-vqa"
    assert locate(str(tmp_path), "main", {}) == tmp_path
    with pytest.raises(UserError, match="does not exist: give the path"):
        locate(str(tmp_path / "absent"), "main", {})
    with pytest.raises(UserError, match="are not in this installation"):
        locate("mini:no-such-model", "main", {})


class Call:
    """Pickled as function(*arguments)."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A log as mmengine keeps them, of a stand-in for its class that writes a file when its state is set."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    run = {"__module__": module.__name__, "__setstate__": lambda self, _: (tmp_path / "sprung").touch(), "min": min}
    module.HistoryBuffer = type("HistoryBuffer", (), run)  # type: ignore[attr-defined]
    log = module.HistoryBuffer()
    log.__dict__.update(_log_history=np.array([0.5, 1.5]), _count_history=np.ones(2, np.int64))
    return log


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_programs_leave_beside_the_weights_is_passed_over(
    tmp_path: Path, history: Any, zipped: bool
) -> None:
    beside = {
        "message_hub": {"log_scalars": {"loss": history}, "statistics": Call(getattr, type(history), "min")},
        "best": np.float64(0.3),
        "args": argparse.Namespace(lr=1e-3, output=None),
    }
    file = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": state(), **beside}, file, _use_new_zipfile_serialization=zipped)
    before = set(torch.serialization.get_safe_globals())
    found = read_weights(file)
    assert found.keys() == {"w", "n"}
    assert torch.equal(found["w"], state()["w"])
    assert not (tmp_path / "sprung").exists()
    assert set(torch.serialization.get_safe_globals()) == before, "allowed for one file, not for the whole program"


@pytest.mark.parametrize(
    "program", [b"cbuiltins\ngetattr\ncnumpy\nndarray\nX\x05\x00\x00\x00upper\x86R)R.", b"cos\nabort\n)R."]
)
def test_what_is_passed_over_reaches_nothing(tmp_path: Path, program: bytes) -> None:
    """getattr(ndarray, "upper") is an object that does nothing, and calling it is refused, as is os.abort."""
    torch.save(state(), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as whole, zipfile.ZipFile(tmp_path / "b.pth", "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, b"\x80\x02" + program if name.endswith("data.pkl") else whole.read(name))
    assert "is refused" in sentence(tmp_path / "b.pth")


def test_what_lies_beside_a_single_file_is_part_of_it(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(b"weights")
    alone = checkpoint_digest(file)
    assert alone == file_digest(file)
    (tmp_path / "README.md").write_text("about")
    assert checkpoint_digest(file) == alone
    (tmp_path / "vocab.txt").write_text("a\nb")
    first = checkpoint_digest(file)
    (tmp_path / "vocab.txt").write_text("b\na")
    assert len({alone, first, checkpoint_digest(file)}) == 3
    assert checkpoint_digest(tmp_path) == file_digest(tmp_path)


@pytest.mark.parametrize("name", ["chat_template.json", "spiece.model", "qformer_tokenizer/tokenizer.json"])
def test_prompts_and_every_tokenizer_beside_it_are_too(tmp_path: Path, name: str) -> None:
    """How a model is asked changes its answers."""
    file, beside = tmp_path / "model.safetensors", tmp_path / name
    file.write_bytes(b"weights")
    alone = checkpoint_digest(file)
    beside.parent.mkdir(exist_ok=True)
    beside.write_text("USER: {}")
    first = checkpoint_digest(file)
    beside.write_text("HUMAN: {}")
    assert len({alone, first, checkpoint_digest(file)}) == 3


# Shards, prefixes, TorchScript ----------------------------------------------------------------------------------------


def sharded(folder: Path) -> None:
    save_file({"w": state()["w"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"n": state()["n"]}, folder / "model-00002-of-00002.safetensors")
    names = {"w": "model-00001-of-00002.safetensors", "n": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def test_an_index_decides_what_is_read(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"w": torch.zeros(2, 3)}, tmp_path / "model.fp16.safetensors")  # a second precision
    assert torch.equal(read_weights(tmp_path)["w"], state()["w"])
    save_file({"w": torch.zeros(2, 3), "n": torch.tensor(1)}, tmp_path / "model.safetensors")
    assert read_weights(tmp_path)["n"] == 3


def test_model_safetensors_is_read_where_there_is_no_index(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "model.safetensors")
    save_file({"w": torch.zeros(2, 3)}, tmp_path / "model.fp16.safetensors")
    assert torch.equal(read_weights(tmp_path)["w"], state()["w"])


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "lacks model-00002-of-00002.safetensors, which its index names" in sentence(tmp_path)


def test_a_shard_without_its_tensor_and_an_index_that_is_none_are_told(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors lacks n" in sentence(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": 3}}')
    assert "is no index of weights" in sentence(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../w.safetensors"}}')
    assert "no file inside" in sentence(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_training_programs_are_taken_off(tmp_path: Path, prefix: str) -> None:
    torch.save({"state_dict": {prefix + key: value for key, value in state().items()}}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").keys() == {"w", "n"}


def test_a_prefix_inside_and_one_of_some_keys(tmp_path: Path) -> None:
    """torch.compile of one block; and a model that has a child named module keeps its name."""
    torch.save({"blocks.0._orig_mod.w": torch.ones(1), "module.w": torch.ones(1)}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").keys() == {"blocks.0.w", "module.w"}
    torch.save({"_orig_mod.w": torch.ones(1), "w": torch.ones(1)}, tmp_path / "a.pth")
    assert "twice" in sentence(tmp_path / "a.pth")


def test_bfloat16_weights_become_the_files_own_pages(tmp_path: Path) -> None:
    """Where they stay; elsewhere they are copied once, into float32. What is written to them reaches no file."""
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.randn(3, 4).bfloat16(), "bias": torch.randn(3)}, file)
    stored = read_weights(file, as_stored=True)
    assert stored["weight"].dtype == torch.bfloat16
    for stays in (True, False):
        net = torch.nn.Linear(4, 3)
        parameter, tensors = net.weight, dict(stored)
        with bf16_stays(stays):
            fill(net, tensors)
        assert not tensors, "a file is open as long as somebody has its tensors"
        assert net.weight is parameter
        assert net.weight.dtype == (torch.bfloat16 if stays else torch.float32)
        assert (net.weight.data_ptr() == stored["weight"].data_ptr()) is stays
        assert torch.equal(net.weight.float(), stored["weight"].float())
        assert torch.equal(net.bias, stored["bias"])
    with torch.no_grad():
        stored["weight"].zero_()
    assert bool(read_weights(file)["weight"].any())
    with bf16_stays(True), pytest.raises(UserError, match="bias is missing"):
        fill(torch.nn.Linear(4, 3), {"weight": stored["weight"]})


# Types ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_width_are_read_and_looked_at(tmp_path: Path, kind: torch.dtype) -> None:
    good = torch.tensor([0.5, -2.0, 1.0])
    save_file({"w": good.to(kind)}, tmp_path / "model.safetensors")
    assert torch.equal(read_weights(tmp_path)["w"], good)
    good[1] = float("nan")
    save_file({"w": good.to(kind)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="w has values that are no numbers"):
        read_weights(tmp_path)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_no_weights(kind: torch.dtype) -> None:
    """Whole numbers of a quantised file would be taken for weights as they are, and an imaginary part be lost."""
    net = nn.Linear(2, 1)
    with pytest.raises(UserError, match=rf"weight is of type {str(kind).removeprefix('torch.')}, not float32"):
        load_into(net, {"weight": torch.ones(1, 2).to(kind), "bias": torch.zeros(1)})


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (torch.eye(2).to_sparse(), "w is sparse"),
        (torch.full((2,), 1e300, dtype=torch.float64), "w has infinite values"),
    ],
    ids=["sparse", "larger than 32 bits hold"],
)
def test_what_is_no_plain_tensor_of_finite_values_is_refused(
    tmp_path: Path, tensor: torch.Tensor, sentence: str
) -> None:
    torch.save({"w": tensor}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=sentence):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_a_pointer_of_git_is_called_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    with pytest.raises(UserError, match=f"{name} is a pointer of Git LFS, not the weights: run git lfs pull"):
        read_weights(tmp_path / name)
