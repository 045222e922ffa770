"""The options that one-shot pruners share: what is compared, how the target is spread, and on which data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from ..capability import capability_of
from ..options import Calibration, PruneOptions, later

COMPARED = 16  # samples a gradient of a loss that compares them


class ScoreOptions(PruneOptions):
    """Options of pruners by score."""

    pattern: Literal["unstructured", "structured"] = later(
        "unstructured",
        description="unstructured: zeros (n:m where sparsity= is a pattern); structured: whole units are cut out",
    )
    group: Literal["row", "matrix", "tower", "model", "code"] = Field(
        "matrix",
        description="which scores are compared: those of a row, a matrix, a tower, or the model (allocation=global); "
        "code: of a matrix in vision and a row elsewhere, as ECoFLaP's and RESSA's code. Structured: row and matrix "
        "mean a site",
    )
    rule: Literal["exact", "<=", "<"] = later(
        "exact",
        description="exact: the count is met, of equal scores the left one goes; <= and <: the published comparisons "
        "with a threshold, one weight or all equal ones off",
    )
    allocation: Literal["uniform"] = later(
        "uniform", description="uniform: one ratio everywhere; global: one ranking over the model, see group"
    )
    vision: float | None = later(None, ge=0, lt=1, description="ratio of the vision towers; 0 leaves them alone")
    language: float | None = later(None, ge=0, lt=1, description="ratio of the language towers; 0 leaves them alone")
    towers: str = later("", description="ratios of towers by name, like question:0.3,answer:0.6")
    budget: Literal["parameters", "ratio"] = later(
        "parameters",
        description="what sparsity= means where towers differ: parameters: the fraction of the prunable set; ratio: "
        "the mean ratio of the towers that are pruned. Towers without a ratio share the rest",
    )
    multiple_of: int = later(1, ge=1, description="structured: round kept widths to a multiple of this")

    @model_validator(mode="before")
    @classmethod
    def _global(cls, data: Any) -> Any:
        """allocation=global is group=model under the name that papers use."""
        if isinstance(data, Mapping) and data.get("allocation") == "global":
            data = {k: v for k, v in data.items() if k != "allocation"}
            if data.setdefault("group", "model") != "model":
                raise ValueError("allocation=global is group=model: leave one of them out")
        return data

    @model_validator(mode="before")
    @classmethod
    def _mean_of_ratios(cls, data: Any) -> Any:
        """vision=0.5 language=0.7 without a target: the mean, which is the target under budget=ratio."""
        if isinstance(data, Mapping) and not {"sparsity", "ratio"} & set(data):
            try:
                ratios = [float(data[k]) for k in ("vision", "language") if data.get(k) is not None]
                ratios += parse_towers(str(data.get("towers", ""))).values()
            except ValueError:
                return data  # told by the field
            pruned = [r for r in ratios if r > 0]
            if len(ratios) > 1 and pruned:
                return {**data, "sparsity": round(sum(pruned) / len(pruned), 6)}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> ScoreOptions:
        parse_towers(self.towers)
        if self.pattern == "structured" and self.n_m is not None:
            raise ValueError("pattern=structured cuts units and cannot make n:m: give a fraction like sparsity=0.5")
        if self.n_m is not None and any(self.tower_ratios.values()):
            raise ValueError("an n:m pattern has one ratio everywhere: give vision=0 to leave a tower out, no other")
        if self.group == "model" and self.tower_ratios:
            raise ValueError("group=model lets one ranking share the target out: leave the towers' ratios away")
        return self

    @property
    def tower_ratios(self) -> dict[str, float]:
        """Name of a modality or a tower -> its ratio, of those that were given."""
        given = {"vision": self.vision, "language": self.language}
        return {**{k: v for k, v in given.items() if v is not None}, **parse_towers(self.towers)}

    @property
    def over_towers(self) -> bool:
        """Whether scores of several matrices are compared, so that all must be there before one is pruned."""
        return self.n_m is None and self.group in ("tower", "model")


def parse_towers(text: str) -> dict[str, float]:
    """ "question:0.3,answer:0.6" -> {"question": 0.3, "answer": 0.6}. Raises ValueError for anything else."""
    ratios: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, colon, value = part.partition(":")
        try:
            ratio = float(value)
        except ValueError:
            ratio = -1.0
        if not name or not colon or not 0 <= ratio < 1:
            raise ValueError(f"{part!r} should be a tower and its ratio in [0, 1), like question:0.3")
        if name in ratios:
            raise ValueError(f"{name} is given twice")
        ratios[name] = ratio
    return ratios


class SampledOptions(ScoreOptions):
    """Options of pruners that look at training samples."""

    calibration_samples: int = Field(128, ge=1, description="training samples that are looked at")
    calibration: str = later(
        "",
        description="another task whose train split is looked at, or a file of captions (COCO, CC3M, Visual Genome); "
        "left out: the task's own train split",
    )
    calibration_images: str = later("", description="folder of a caption file's images; left out: the file's own")
    statistics: Literal["float64", "float32"] = later("float64", description="precision in which sums are kept")
    allocation: Literal["uniform", "ecoflap", "ecoflap-zeroth", "owl"] = later(  # type: ignore[assignment]
        "uniform",
        description="uniform: one ratio everywhere; global: one ranking over the model, see group; ecoflap: a ratio "
        "for each block, by |weight * gradient|; ecoflap-zeroth: by differences of the loss, two passes a matrix; owl: "
        "by how many of its Wanda scores are outliers",
    )
    allocation_samples: int = later(
        32, ge=1, description="ecoflap and owl: how many of the samples give the gradients, or the inputs"
    )
    owl_multiple: float = later(5.0, gt=0, description="owl: outliers are scores above so many times the mean")
    owl_span: float = later(0.08, ge=0, lt=1, description="owl: how far a block's ratio may be from the target")

    @property
    def looks_at(self) -> Calibration:
        return Calibration(self.calibration, self.calibration_images, self.calibration_samples)

    @model_validator(mode="after")
    def _images_of_a_file(self) -> SampledOptions:
        if self.calibration_images and not self.calibration:
            raise ValueError("calibration_images= is the folder of a caption file: give calibration=FILE, too")
        return self

    @model_validator(mode="after")
    def _one_spread(self) -> SampledOptions:
        if self.allocation != "uniform":
            if self.n_m is not None:
                raise ValueError(f"an n:m pattern has one ratio everywhere and no allocation={self.allocation}")
            if self.group in ("tower", "model"):
                raise ValueError(f"group={self.group} ranks over the blocks that allocation={self.allocation} parts")
            if self.tower_ratios:
                raise ValueError(f"allocation={self.allocation} sets the ratios of all towers: leave theirs away")
        return self


class CalibratedOptions(SampledOptions):
    """Options of pruners whose score needs the inputs of the matrices."""

    group: Literal["row", "matrix", "tower", "model", "code"] = "row"
    propagate: Literal["pruned", "dense"] = Field(
        "pruned", description="what the next block sees: the pruned block's output, or the dense one's"
    )

    @model_validator(mode="after")
    def _one_pass(self) -> CalibratedOptions:
        if self.over_towers and self.propagate == "pruned":
            raise ValueError(f"group={self.group} ranks after all blocks were seen: add propagate=dense")
        return self


class GradientOptions(SampledOptions):
    """Options of pruners whose score needs gradients of the loss."""

    gradient_batch: int | None = Field(
        None,
        ge=1,
        description="samples a backward pass; squares of the gradient are those of a batch's mean. Left out: 1, and "
        f"{COMPARED} where the loss compares the samples of a batch (retrieval)",
    )

    def refusal(self, capability: str) -> str:
        if self.gradient_batch == 1 and capability_of(capability).loss_over_batch:
            return (
                f"gradient_batch=1: the loss of {capability} compares the samples of a batch with one another, and one "
                f"alone has nothing to learn: leave it out, which is {COMPARED} here"
            )
        return super().refusal(capability)

    def samples_a_gradient(self, *, compared: bool) -> int:
        """gradient_batch, or what stands for it. compared: whether the loss compares the samples of a batch."""
        return self.gradient_batch or (COMPARED if compared else 1)
