"""`lmms-eval --model vlbench --model_args pretrained=FOLDER`: lmms-eval finds `manifest` as an entry point.

lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval, 0.6 and later) loads the class only when it is asked for.
"""

from __future__ import annotations

from typing import Any

CLASS = "vlbench.evaluators.lmms_model.VLBench"


def manifest() -> Any:
    """What lmms-eval lists."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vlbench", simple_class_path=CLASS)
