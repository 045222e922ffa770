"""What a stranger's data, weights and folders cannot do: run code, leave their folder, fill the memory."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vlbench
from tests.lab import Lab, method_file
from vlbench.disk.digests import file_digest
from vlbench.disk.paths import inside
from vlbench.disk.storage import write_sealed
from vlbench.errors import UserError
from vlbench.plugins.kinds import FOLDERS
from vlbench.plugins.workspace import package_folder

# The source --------------------------------------------------------------------------------------------------------

# Modules that run what they read. tensors/torch_files.py names an exception of pickle and reads nothing with it;
# images/folder.py reads variant.yml with safe_load alone, and what is called of yaml elsewhere is looked at below.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
NAMES_AN_EXCEPTION = {"tensors/torch_files.py": {"pickle"}, "images/folder.py": {"yaml"}}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "extractall", "unpack_archive", "from_dynamic_module"}
RUNS_PLUGINS = {"plugins/entry.py": {"import_module", "spec_from_file_location"}}


def sources() -> list[Path]:
    folders = [Path(vlbench.__file__).parent, *(package_folder(name) for name in FOLDERS.values())]
    return sorted({file.resolve() for folder in folders for file in folder.rglob("*.py")})


def unsafe(text: str, name: str = "") -> list[str]:
    """What the source does that may run what it reads: line and words."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            wrong = {m.split(".")[0] for m in modules} & UNSAFE_MODULES - NAMES_AN_EXCEPTION.get(name, set())
            found += [f"{node.lineno} import {module}" for module in wrong]
        if isinstance(node, ast.Call):
            found += [f"{node.lineno} {why}" for why in _unsafe_call(node, name)]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle":
            found += [] if node.attr == "UnpicklingError" else [f"{node.lineno} pickle.{node.attr}"]
    return found


def _unsafe_call(node: ast.Call, name: str) -> list[str]:
    function = node.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
    words = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else ... for k in node.keywords}
    plain = not isinstance(function, ast.Attribute) or owner in ("builtins", "shutil", "tarfile", "zipfile")
    found = [called] if called in UNSAFE_CALLS and (plain or called not in ("eval", "compile")) else []
    found += ["torch.load without weights_only=True"] if (owner, called) == ("torch", "load") and (
        words.get("weights_only") is not True
    ) else []  # fmt: skip
    found += [f"yaml.{called}"] if owner == "yaml" and called != "safe_load" else []
    found += ["allow_pickle"] if words.get("allow_pickle", False) is not False else []
    found += ["trust_remote_code"] if words.get("trust_remote_code", False) is not False else []
    found += ["shell=True"] if words.get("shell", False) is not False else []
    remote = called == "from_pretrained" and owner.startswith("Auto") and words.get("trust_remote_code") is not False
    found += ["from_pretrained without trust_remote_code=False"] if remote else []
    imports = {"import_module", "spec_from_file_location"} - RUNS_PLUGINS.get(name, set())
    if called in imports and not (node.args and isinstance(node.args[0], ast.Constant)):
        found.append(f"{called} of a name that is computed")
    return found


def test_no_source_runs_what_it_reads() -> None:
    found = {
        str(file): wrong for file in sources() if (wrong := unsafe(file.read_text("utf-8"), "/".join(file.parts[-2:])))
    }
    assert len(sources()) > 100
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "yaml.load(f); import yaml",
        "eval(text)",
        "exec(text)",
        "tarfile.open(f).extractall(d)",
        "archive.extractall(d)",
        "AutoModel.from_pretrained(d)",
        "AutoModel.from_pretrained(d, trust_remote_code=True)",
        "importlib.import_module(name)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_finds_it(line: str) -> None:
    assert unsafe(line)


def test_evaluation_modes_are_no_eval() -> None:
    assert not unsafe("net.eval()\nre.compile(x)\ntorch.compile(net)")


# Plug-ins ----------------------------------------------------------------------------------------------------------

MARK = "\nfrom pathlib import Path as _P\n_P({path!r}).write_text('ran')\n"


def test_plugins_of_other_folders_are_never_imported(lab: Lab) -> None:
    """Of the data, the runs and the weights: theirs are not the workspace's methods/, tasks/ and registry/."""
    ran = lab.folder / "ran"
    source = method_file("mine", before=MARK.format(path=str(ran)))
    runs = lab.folder / "runs"
    for folder in (lab.data, lab.weights, runs, lab.data / "val", runs / "cell"):
        for name in ("methods", "tasks", "registry", "."):
            (folder / name).mkdir(parents=True, exist_ok=True)
            if folder / name != lab.data / "val" / ".":
                (folder / name / "mine.py").write_text(source)
                (folder / name / "__init__.py").write_text(source)
        (folder / "sitecustomize.py").write_text(source)
    for wnid in ("methods", "tasks", "registry"):  # a class folder of the data must hold images
        for file in (lab.data / "val" / wnid).iterdir():
            file.unlink()
        (lab.data / "val" / wnid).rmdir()
    told = lab("list", "methods")
    assert "mine" not in told.out.split()
    assert "there is no method 'mine'" in lab.refused_run("method=mine")
    assert lab.run("--runs", str(runs)).code in (0, 2)
    assert not ran.exists()
    lab.plug("methods/mine.py", source)  # in the workspace's own it is
    assert lab("help", "method=mine").code == 0
    assert ran.exists()


def test_python_of_a_model_folder_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokenizer asks for it by auto_map; the question that transformers would put to the user is not asked."""
    from vlbench.plugins.table import table

    ran = tmp_path / "ran"
    module = sys.modules[table("models").get("llava-1.5-7b").load().__module__] if _has_llava() else None
    if module is None:
        pytest.skip("no family here reads whatever tokenizer its folder has")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "own.py").write_text(MARK.format(path=str(ran)) + "class Own: ...\n")
    told = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="tokenizer"):
        module.read_tokenizer(folder, 100)
    assert not ran.exists()


def _has_llava() -> bool:
    from vlbench.plugins.table import table

    return "llava-1.5-7b" in table("models").entries


# Paths -------------------------------------------------------------------------------------------------------------

OUTSIDE = ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "a\\..\\b.jpg", "a\0b.jpg", "", ".", "a/.."]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"train\.json names the image .*which is no file inside the data folder"):
        inside(name, "train.json")


def test_a_path_in_its_folder_is_itself() -> None:
    assert inside("a/b..c/1.jpg", "x").as_posix() == "a/b..c/1.jpg"


def test_every_reader_of_names_goes_through_it() -> None:
    """A plug-in that takes a file's name from an annotation has `inside` in its source; no other join is of data."""
    keys = {"file_name", "image_name", "filename", "filepath", "file_path", "directory", "imageId"}
    for file in sorted((package_folder("tasks")).glob("*.py")):
        text = file.read_text("utf-8")
        strings = {
            n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant) and isinstance(n.value, str)
        }
        if strings & keys:
            assert "inside(" in text, file


CAPTIONS: dict[str, Callable[[str], str]] = {
    "coco": lambda name: json.dumps(
        {"images": [{"id": 1, "file_name": name}], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]}
    ),
    "table": lambda name: f"a cat\t{name}\n",
}


@pytest.mark.parametrize("layout", CAPTIONS)
@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg"])
def test_calibration_files_stay_in_their_folder(tmp_path: Path, layout: str, name: str) -> None:
    from vlbench.cell.caption_files import read_captions

    file = tmp_path / ("captions.tsv" if layout == "table" else "captions.json")
    file.write_text(CAPTIONS[layout](name))
    with pytest.raises(UserError, match=r"captions\.\w+ names the image .*inside the data folder"):
        list(read_captions(file, tmp_path))


def test_a_models_manifest_names_files_of_its_folder(tmp_path: Path) -> None:
    """What it names is copied when the model is exported."""
    from vlbench.compression.saved import copy_saved

    secret = tmp_path / "secret"
    secret.write_text("secret")
    for name in ("../secret", str(secret)):
        folder, target = tmp_path / "model", tmp_path / "deep" / "target"
        folder.mkdir(exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        write_sealed(folder / "vlbench.json", {"format": 1, "files": {name: file_digest(secret)}})
        with pytest.raises(UserError, match="inside the data folder"):
            copy_saved(folder, target)
        assert not list(target.iterdir())
        assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["target"]
