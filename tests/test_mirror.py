"""Every product file has a test file of its own place and name, or a line here that says which test would fail."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOPS = ("vlbench", "registry", "tasks", "methods")
# Pattern of product files -> the tests that run what is in them. The first pattern that fits counts.
ELSEWHERE = {
    # The contracts: what each promises is tested where it is kept.
    "vlbench/errors.py": "tests/test_bad_input.py",
    "vlbench/records/naming.py": "tests/leaderboard/test_recomputed.py",
    "vlbench/options.py": "tests/checks/test_contract.py",
    "vlbench/structure.py": "tests/nn/test_kinds.py",
    "vlbench/task.py": "tests/test_registry.py",
    "vlbench/capability.py": "tests/capabilities/test_open_table.py",
    "vlbench/model.py": "tests/test_registry.py",
    "vlbench/job.py": "tests/calibration/test_learning_data.py",
    "vlbench/method.py": "tests/checks/test_contract.py",
    "vlbench/runtime.py": "tests/serving/test_export.py",
    "vlbench/capabilities/*": "tests/cost/test_sample.py",
    "vlbench/calibration/blocks.py": "tests/calibration/test_calibrate.py",
    "vlbench/calibration/capture.py": "tests/calibration/test_walk.py",
    "vlbench/calibration/data.py": "tests/calibration/test_learning_data.py",
    "vlbench/calibration/gradients.py": "tests/methods/test_oneshot.py",
    "vlbench/calibration/moments.py": "tests/methods/test_neighbours.py",
    "vlbench/calibration/source.py": "tests/cell/test_sources.py",
    "vlbench/calibration/tower.py": "tests/calibration/test_calibrate.py",
    "vlbench/cost/devices.py": "tests/cost/test_needs.py",
    "vlbench/cell/again.py": "tests/publishing/test_submission.py",
    "vlbench/cell/roots.py": "tests/cell/test_cell.py",
    "vlbench/cell/*": "tests/cell/test_spec.py",
    "vlbench/checks/prepare.py": "tests/tasks/test_packed.py",
    "vlbench/checks/tiny.py": "tests/checks/test_contract.py",
    "vlbench/cli/*": "tests/test_cli.py",
    "vlbench/comparison/rebuilt.py": "tests/comparison/test_compare.py",
    "vlbench/compression/changes.py": "tests/run/test_agreement.py",
    "vlbench/compression/cut.py": "tests/nn/test_kinds.py",
    "vlbench/compression/shapes.py": "tests/registry/test_blip_open.py",
    "vlbench/compression/state.py": "tests/compression/test_saved.py",
    "vlbench/cost/*": "tests/cost/test_sample.py",
    "vlbench/disk/checksums.py": "tests/compression/test_saved.py",
    "vlbench/disk/digests.py": "tests/tensors/test_reading.py",
    "vlbench/disk/paths.py": "tests/test_security.py",
    "vlbench/evaluation/ranks.py": "tests/tasks/test_recall.py",
    "vlbench/evaluators/compared.py": "tests/evaluators/test_logs.py",
    "vlbench/evaluators/*": "tests/evaluators/test_asking.py",
    "vlbench/images/files.py": "tests/disk/test_foreign.py",
    "vlbench/images/maps.py": "tests/tasks/test_ade20k.py",
    "vlbench/images/spec.py": "tests/images/test_pipeline.py",
    "vlbench/images/view.py": "tests/registry/test_families.py",
    "vlbench/leaderboard/export.py": "tests/leaderboard/test_latex.py",
    "vlbench/leaderboard/filters.py": "tests/leaderboard/test_verbs.py",
    "vlbench/leaderboard/local.py": "tests/leaderboard/test_excerpt.py",
    "vlbench/leaderboard/metric.py": "tests/pages/test_board.py",
    "vlbench/leaderboard/points.py": "tests/plots/test_pictures.py",
    "vlbench/leaderboard/scales.py": "tests/leaderboard/test_strangers.py",
    "vlbench/leaderboard/terminal.py": "tests/leaderboard/test_tables.py",
    "vlbench/machine/stopping.py": "tests/faults/test_signals.py",
    "vlbench/machine/ui.py": "tests/test_cli.py",
    "vlbench/mini/*": "tests/mini/test_world.py",
    "vlbench/mini_models/*": "tests/mini_models/test_vocabulary.py",
    "vlbench/nn/beam.py": "tests/registry/test_blip_heads.py",
    "vlbench/nn/mmseg_shim.py": "tests/registry/test_segmenter.py",
    "vlbench/nn/precision.py": "tests/machine/test_simulated.py",
    "vlbench/nn/stock.py": "tests/compression/test_export.py",
    "vlbench/nn/stream.py": "tests/registry/test_families.py",
    "vlbench/nn/*": "tests/nn/test_kinds.py",  # every kind of attention, each with its file
    "vlbench/pages/*": "tests/pages/test_run.py",
    "vlbench/plots/restoration.py": "tests/plots/test_studies.py",
    "vlbench/plots/spread.py": "tests/plots/test_studies.py",
    "vlbench/plots/*": "tests/plots/test_pictures.py",
    "vlbench/plugins/kinds.py": "tests/test_security.py",
    "vlbench/plugins/scaffold.py": "tests/test_packaging.py",
    "vlbench/plugins/*": "tests/plugins/test_table.py",
    "vlbench/pruning/decisions.py": "tests/methods/test_oneshot.py",
    "vlbench/pruning/depth.py": "tests/methods/test_depth_pruners.py",
    "vlbench/pruning/l0_search.py": "tests/methods/test_l0.py",
    "vlbench/pruning/learned_gates.py": "tests/methods/test_mask_based.py",
    "vlbench/pruning/obs.py": "tests/methods/test_sparsegpt.py",
    "vlbench/pruning/options.py": "tests/pruning/test_modality.py",
    "vlbench/pruning/unit_rows.py": "tests/methods/test_hesso.py",
    "vlbench/pruning/rotation.py": "tests/methods/test_slicegpt.py",
    "vlbench/training/schedule.py": "tests/training/test_loop.py",
    "vlbench/pruning/owl.py": "tests/methods/test_neighbours.py",
    "vlbench/pruning/scoring.py": "tests/methods/test_wanda.py",
    "vlbench/pruning/search.py": "tests/methods/test_upop.py",
    "vlbench/publishing/difference.py": "tests/publishing/test_regenerate.py",
    "vlbench/publishing/*": "tests/publishing/test_submission.py",
    "vlbench/records/flags.py": "tests/run/test_flags.py",
    "vlbench/records/server.py": "tests/records/test_record.py",
    "vlbench/run/*": "tests/run/test_runner.py",
    "vlbench/runtimes/*": "tests/serving/test_export.py",
    "vlbench/serving/*": "tests/serving/test_export.py",
    "vlbench/sweep/planning.py": "tests/sweep/test_sweep.py",
    "vlbench/sweep/process.py": "tests/sweep/test_local.py",
    "vlbench/sweep/*": "tests/sweep/test_state.py",
    "vlbench/tensors/locate.py": "tests/tensors/test_reading.py",
    "vlbench/training/hooks.py": "tests/training/test_loop.py",
    "registry/loaders/*": "tests/compression/test_export.py",  # an exported folder opened by the loader in it
    "registry/_blip_keys.py": "tests/registry/test_upop_files.py",
    "registry/_blip_text.py": "tests/registry/test_blip.py",
    "registry/_clip_keys.py": "tests/registry/test_clip.py",
    "registry/_segmenter_keys.py": "tests/registry/test_segmenter.py",
    "registry/_llava_qwen.py": "tests/registry/test_llave.py",
    "registry/dino.py": "tests/registry/test_encoders.py",
    "registry/siglip.py": "tests/registry/test_encoders.py",
    "registry/_language.py": "tests/registry/test_blip2.py",
    "registry/_prompted.py": "tests/registry/test_blip2.py",
    "registry/instructblip.py": "tests/registry/test_blip2.py",
    "registry/*": "tests/registry/test_families.py",  # one test over every family of the shared base
    "tasks/_answering.py": "tests/tasks/test_vqav2.py",
    "tasks/_karpathy.py": "tests/tasks/test_retrieval.py",
    "tasks/_java_metrics.py": "tests/tasks/test_caption_metrics.py",
    "tasks/_vqa_files.py": "tests/tasks/test_vqav2.py",
    "tasks/*_retrieval.py": "tests/tasks/test_retrieval.py",
    "tasks/_worlds/*": "tests/tasks/_worlds/test_answers.py",
    "tasks/_choice.py": "tests/tasks/test_rules.py",
    "tasks/_mmmu_rules.py": "tests/tasks/test_rules.py",
    "tasks/_short.py": "tests/tasks/test_rules.py",
    "tasks/_yes_no.py": "tests/tasks/test_rules.py",
    "tasks/docvqa.py": "tests/tasks/test_choice_and_short_files.py",
    "tasks/chartqa.py": "tests/tasks/test_choice_and_short_files.py",
    "tasks/scienceqa.py": "tests/tasks/test_choice_and_short_files.py",
    "tasks/textvqa.py": "tests/tasks/test_choice_and_short_files.py",
    "tasks/*": "tests/tasks/test_tables.py",
    "methods/_upop_recipes.py": "tests/cell/test_spec.py",
    "methods/dense.py": "tests/run/test_runner.py",
    "methods/shortgpt.py": "tests/methods/test_depth_pruners.py",
    "methods/sleb.py": "tests/methods/test_depth_pruners.py",
    "methods/uniform.py": "tests/methods/test_upop_ablations.py",
    "methods/magnitude.py": "tests/methods/test_oneshot.py",
    "methods/obd.py": "tests/methods/test_oneshot.py",
    "methods/random_.py": "tests/methods/test_oneshot.py",
    "methods/taylor.py": "tests/methods/test_oneshot.py",
    "methods/*": "tests/methods/test_neighbours.py",
}  # fmt: skip


def product_files() -> list[str]:
    files = (file for top in TOPS for file in (ROOT / top).rglob("*.py"))
    return sorted(file.relative_to(ROOT).as_posix() for file in files if not file.name.startswith("__"))


def mirror(file: str) -> Path:
    """tests/ROOM/test_NAME.py; the plug-ins' folders are rooms of their own names."""
    place = Path(file.removeprefix("vlbench/"))
    return ROOT / "tests" / place.parent / f"test_{place.stem.strip('_')}.py"


def elsewhere(file: str) -> str | None:
    return next((test for pattern, test in ELSEWHERE.items() if fnmatch(file, pattern)), None)


def test_every_file_has_a_test_or_a_line_that_says_where() -> None:
    lost = [file for file in product_files() if not mirror(file).is_file() and elsewhere(file) is None]
    assert not lost, f"write tests/ROOM/test_NAME.py, or say in ELSEWHERE which test runs {', '.join(lost)}"
    absent = sorted({test for test in ELSEWHERE.values() if not (ROOT / test).is_file()})
    assert not absent, f"these tests of ELSEWHERE are not there: {', '.join(absent)}"


def test_no_line_is_left_of_files_that_are_gone() -> None:
    files = [file for file in product_files() if not mirror(file).is_file()]
    used = {next(pattern for pattern in ELSEWHERE if fnmatch(file, pattern)) for file in files}
    assert set(ELSEWHERE) == used


def test_the_table_is_the_smaller_part() -> None:
    """A third of the files have a test of their own (142 of 357 when this was written); the table is for what is tested
    together."""
    files = product_files()
    assert 3 * sum(mirror(file).is_file() for file in files) >= len(files)
