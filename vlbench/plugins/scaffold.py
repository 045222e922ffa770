"""`vlbench new method NAME`: one file that runs as it is."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from ..disk.storage import write_text
from ..errors import UserError
from .declared import LONGEST
from .kinds import FOLDERS, RESERVED
from .table import table
from .workspace import WORKSPACE_FILE, package_folder, workspace

METHOD = '''"""{name}: say here what is pruned and why (paper, equation)."""

from __future__ import annotations

from torch import Tensor

from vlbench.method import method
from vlbench.calibration.statistics import Statistics
from vlbench.pruning.scoring import ScorePruner


@method("{name}", title="{title}", role="pruner", patterns=("unstructured", "n:m"))
class {cls}(ScorePruner):
    """One sentence for `vlbench help method={name}`."""

    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        """(out, in) -> (out, in): the weights with the lowest score become zero. Replace this formula by yours."""
        return weight.abs() / weight.abs().mean(dim=0, keepdim=True)
'''

TOML = """# A vlbench workspace: plug-ins in methods/, tasks/ and registry/ beside this file are loaded.
[roots]
# coco = "/data/coco"
# imagenet = "/data/imagenet"
# weights = "/data/weights"
"""


def create(kind: str, name: str) -> list[str]:
    """Write the file and return what to tell the user. In a checkout: methods/NAME.py; elsewhere a workspace."""
    if kind != "method":
        raise UserError(f"vlbench new {kind}: only `vlbench new method NAME` is there.")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or name in RESERVED:
        raise UserError(f"{name[:LONGEST]!r} should be a lower-case Python identifier, like my_method.")
    if len(name) > LONGEST:
        raise UserError(f"{name[:LONGEST]}... is longer than {LONGEST} characters: shorten it.")
    if name in table("methods").entries:
        raise UserError(f"there is a method {name!r} already ({table('methods').entries[name].file}).")
    folder, new_files = _place()
    file = folder / FOLDERS["methods"] / f"{name}.py"
    if file.exists():
        raise UserError(f"{file} exists already.")
    for path, text in new_files:
        write_text(path, text)
    title = name.replace("_", " ").capitalize()
    cls = "".join(part.capitalize() for part in name.split("_"))
    write_text(file, METHOD.format(name=name, title=title, cls=cls))
    lines = [f"wrote {path}: {folder} is a workspace now" for path, _ in new_files]
    return [
        *lines,
        f"wrote {file}",
        f"try it:   vlbench run method={name} task=imagenet",
        f"check it: vlbench check method={name}",
    ]


def _place() -> tuple[Path, list[tuple[Path, str]]]:
    """Where the file goes, and what else is to be written there: the checkout we stand in, the workspace we stand in,
    or a new workspace here."""
    here = Path.cwd().resolve()
    # A checkout that this program does not run from would not be read: it is a folder like any other.
    checkout = package_folder(FOLDERS["methods"]).resolve().parent
    if (checkout / "pyproject.toml").is_file() and checkout in (here, *here.parents):
        return checkout, []
    space = workspace()
    return (space.folder, []) if space.present else (here, [(here / WORKSPACE_FILE, TOML)])
