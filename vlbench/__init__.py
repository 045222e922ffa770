"""vlbench: which pruning method keeps the most quality of a vision-language model for the least cost?

Nothing heavy is imported here: `import vlbench` and the command line stay instant until torch is needed.
"""

from __future__ import annotations

from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    import pandas as _pandas

    from .model import Model

__version__ = "0.2.0"

# The plug-in folders stand at the top of the checkout because contributors work there, and are installed as
# vlbench.registry, vlbench.tasks, vlbench.methods and vlbench.leaderboards. In a bare checkout (no install, or a
# wheel installed beside it) this bridge gives the same module names.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "tasks" / "__init__.py").is_file():
    __path__.append(str(_checkout))


def load(folder: str | _Path) -> Model:
    """The compressed model of a run (runs/RUN/model) or of `vlbench export`, ready to use: `.net` is the torch module.

    Raises UserError where the folder is damaged or holds no compressed model.
    """
    from .compression.saved import load_model

    return load_model(_Path(folder))[0]


def results(runs: str | _Path = "runs", **words: str) -> _pandas.DataFrame:
    """All rows of the leaderboards and of the user's own runs, one a configuration, as a pandas data frame: the columns
    of the boards' CSV (`metrics` as a dictionary), and `cells` and `seed_values` (separated by blanks) and `local`.

    words narrow them down: vlbench.results(task="vqav2", suite="mini"); suite, task, split, model, method, pattern,
    sparsity. Raises UserError for a word that leaves no row.
    """
    from .errors import UserError, did_you_mean
    from .leaderboard.filters import FILTERS
    from .leaderboard.frame import results as frame

    if wrong := [word for word in words if word not in FILTERS]:
        raise UserError(f"{wrong[0]}= is not known here. {did_you_mean(wrong[0], FILTERS)}")
    return frame(_Path(runs), words)
