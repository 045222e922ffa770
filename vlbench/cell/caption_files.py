"""Files of captions that calibration may look at: COCO's JSON, CC3M's table, Visual Genome's regions.

The layout is told by the content, not by the name:
- COCO (captions_train2014.json): {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]};
- Conceptual Captions: lines of caption, tab, image file. A first line that names its columns may put them the other
  way round (filepath, title: what open_clip's download script writes). The published table has addresses in place of
  files, and many of them are dead: lines have to name what was downloaded;
- Visual Genome (region_descriptions.json): [{"image_id" or "id", "regions": [{"region_id", "phrase"}]}], with images
  <image id>.jpg in the folder, or in its VG_100K and VG_100K_2. A phrase describes a region and is shown with the whole
  image, as in BLIP's pre-training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..disk.paths import inside
from ..errors import UserError
from ..task import Sample

LAYOUTS = "COCO's captions (JSON), Conceptual Captions (caption, tab, image file) or Visual Genome's regions (JSON)"
CAPTION_COLUMNS, FILE_COLUMNS = ("caption", "title"), ("image", "file", "filepath")
GENOME_FOLDERS = ("", "VG_100K", "VG_100K_2")
SHOWN = 3  # names in a message


def read_captions(file: Path, images: Path) -> list[Sample]:
    """A sample a caption, in the file's order: its target is the caption, its cluster the image. images: the folder
    that file names are relative to. Raises UserError for a file that is not of these layouts, and for images that are
    not there (how many, and the first of them)."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"calibration={file} cannot be read: {error}.") from None
    samples = list(_table(file, text, images) if file.suffix == ".tsv" else _json(file, text, images))
    _refuse_missing(file, samples)
    return samples


def _json(file: Path, text: str, images: Path) -> Iterator[Sample]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"calibration={file} is not JSON, or cut short: {error}.") from None
    if isinstance(content, dict) and isinstance(content.get("annotations"), list) and "images" in content:
        return _coco(file, content, images)
    if isinstance(content, list) and content and isinstance(content[0], dict) and "regions" in content[0]:
        return _genome(file, content, images)
    raise UserError(f"calibration={file} is of no layout that is known: {LAYOUTS}.")


def _coco(file: Path, content: dict[str, Any], images: Path) -> Iterator[Sample]:
    at = "images"
    try:
        names = {row["id"]: images / _inside(row["file_name"], file) for row in content["images"]}
        for number, row in enumerate(content["annotations"]):
            at, image = f"entry {number} of annotations", row["image_id"]
            yield Sample(f"caption-{row['id']}", (names[image],), target=_words(row["caption"]), cluster=str(image))
    except (KeyError, TypeError) as error:
        raise UserError(f"calibration={file}: {at} is not as COCO has it: {error!r}.") from None


def _genome(file: Path, content: list[Any], images: Path) -> Iterator[Sample]:
    folders = {name: images / name for name in GENOME_FOLDERS}
    listed = {name: {p.name for p in path.iterdir()} for name, path in folders.items() if path.is_dir()}
    number = -1
    try:
        for number, row in enumerate(content):  # noqa: B007 - for the message
            image = str(row["image_id"] if "image_id" in row else row["id"])
            file_name = f"{int(image)}.jpg"
            folder = next((folders[name] for name, there in listed.items() if file_name in there), images)
            for region in row["regions"]:
                text = _words(region["phrase"])
                yield Sample(f"region-{region['region_id']}", (folder / file_name,), target=text, cluster=image)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"calibration={file}: entry {number} is not as Visual Genome has it: {error!r}.") from None


def _table(file: Path, text: str, images: Path) -> Iterator[Sample]:
    caption_at, file_at, first = 0, 1, 0
    lines = text.split("\n")
    head = [name.strip().lower() for name in lines[0].split("\t")]
    named = {kind: [i for i, name in enumerate(head) if name in names]
             for kind, names in (("caption", CAPTION_COLUMNS), ("file", FILE_COLUMNS))}  # fmt: skip
    if named["caption"] and named["file"]:
        caption_at, file_at, first = named["caption"][0], named["file"][0], 1
    for number, line in enumerate(lines[first:], first + 1):
        if not line.strip():
            continue
        parts = line.rstrip("\r").split("\t")
        if len(parts) <= max(caption_at, file_at):
            raise UserError(f"calibration={file}: line {number} should be a caption, a tab and an image file.")
        name = parts[file_at].strip()
        if "://" in name:
            raise UserError(
                f"calibration={file}: line {number} names the address {name}: write the files that were downloaded in "
                "the place of their addresses, and leave out the lines without one."
            )
        path = _inside(name, file)
        yield Sample(f"line-{number}", (images / path,), target=parts[caption_at].strip(), cluster=path.as_posix())


def _words(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _inside(name: Any, file: Path) -> PurePosixPath:
    return inside(_words(name), f"calibration={file}")


def _refuse_missing(file: Path, samples: list[Sample]) -> None:
    """By one listing a folder: CC3M has three million images."""
    wanted = dict.fromkeys(image for sample in samples for image in sample.images)
    folders = {path.parent for path in wanted}
    there = {folder: {p.name for p in folder.iterdir()} if folder.is_dir() else set() for folder in folders}
    lacking = [path for path in wanted if path.name not in there[path.parent]]
    if lacking:
        raise UserError(
            f"{len(lacking)} of the {len(wanted)} images of calibration={file} are not there, the first "
            f"{', '.join(map(str, lacking[:SHOWN]))}: name their folder with calibration_images=, or take them out."
        )
