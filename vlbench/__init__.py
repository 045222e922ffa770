"""vlbench: which pruning method keeps the most quality of a vision-language model for the least cost?

Nothing heavy is imported here: `import vlbench` and the command line stay instant until torch is needed.
"""

from __future__ import annotations

from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from .model import Model

__version__ = "0.1.0"

# The plug-in folders stand at the top of the checkout because contributors work there, and are installed as
# vlbench.registry, vlbench.tasks, vlbench.methods and vlbench.leaderboards. In a bare checkout (no install, or a
# wheel installed beside it) this bridge gives the same module names.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "tasks" / "__init__.py").is_file():
    __path__.append(str(_checkout))


def load(folder: str | _Path) -> Model:
    """The compressed model that a run saved (runs/RUN/model), ready to use: `.net` is the torch module.

    Raises UserError where the folder is damaged or holds no compressed model.
    """
    from .pruning.saved import load_model

    return load_model(_Path(folder))[0]
