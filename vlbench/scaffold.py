"""`vlbench new method NAME`: one file that runs as it is."""

from __future__ import annotations

import keyword
from pathlib import Path

from .errors import UserError
from .plugins import FOLDERS, WORKSPACE_FILE, table, workspace
from .storage import write_text

METHOD = '''"""{name}: say here what is pruned and why (paper, equation)."""

from __future__ import annotations

from torch import Tensor

from vlbench.method import method
from vlbench.pruning.scoring import ScorePruner


@method("{name}", title="{title}", role="pruner", patterns=("unstructured", "n:m"))
class {cls}(ScorePruner):
    """One sentence for `vlbench help method={name}`."""

    def score(self, weight: Tensor) -> Tensor:
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
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower() or name.startswith("_"):
        raise UserError(f"{name!r} should be a lower-case Python identifier, like my_method.")
    if name in table("methods").entries:
        raise UserError(f"there is a method {name!r} already ({table('methods').entries[name].file}).")
    folder, told = _place()
    file = folder / FOLDERS["methods"] / f"{name}.py"
    if file.exists():
        raise UserError(f"{file} exists already.")
    title = name.replace("_", " ").capitalize()
    cls = "".join(part.capitalize() for part in name.split("_"))
    write_text(file, METHOD.format(name=name, title=title, cls=cls))
    return [*told, f"wrote {file}", f"try it: vlbench run method={name} task=imagenet"]


def _place() -> tuple[Path, list[str]]:
    """The checkout we stand in, the workspace we stand in, or a new workspace here."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "vlbench" / "plugins.py").is_file():
            return folder, []
    space = workspace()
    if space.present:
        return space.folder, []
    write_text(here / WORKSPACE_FILE, TOML)
    return here, [f"wrote {here / WORKSPACE_FILE}: this folder is a workspace now"]
