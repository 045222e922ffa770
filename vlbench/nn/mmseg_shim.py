"""mmsegmentation without mmcv's compiled operators, which build for no torch since 2.10 (extra `segmentation`).

Models whose forward calls none of them (every ViT) need nothing else: mmcv only asks whether its operators are there.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..errors import UserError

COMPILED = "mmcv._ext"


class _Operators(ModuleType):
    """Has every operator; each says what is missing when it is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_: Any, **__: Any) -> None:
            raise NotImplementedError(f"mmcv's operator {name} is compiled code, which mmcv-lite has not")

        return absent


def install() -> None:
    """Put the stand-in where mmcv looks for its operators, unless they are there. Before mmseg.models is imported."""
    if COMPILED not in sys.modules and importlib.util.find_spec(COMPILED) is None:
        sys.modules[COMPILED] = _Operators(COMPILED)


def require() -> ModuleType:
    """mmseg.models, imported. Raises UserError with the command that installs what is missing."""
    try:
        install()
        return importlib.import_module("mmseg.models")
    except ModuleNotFoundError as error:
        raise UserError(f'{error.name} is not installed: pip install "vlbench[segmentation]".') from None
    except ImportError as error:
        library = next((word.strip(":") for word in str(error).split() if ".so" in word), "")
        if "cannot open shared object file" not in str(error):
            raise
        raise UserError(
            f"mmsegmentation's opencv needs {library}, which this machine lacks: apt-get install libgl1 libglib2.0-0, "
            "or pip install --force-reinstall --no-deps opencv-python-headless."
        ) from None
