"""Karpathy's splits of COCO and Flickr30K (Karpathy & Fei-Fei, CVPR 2015): images with their captions.

Two layouts, at the root or in its annotations/, the first found is read:
- Karpathy's own dataset_coco.json / dataset_flickr30k.json, with all splits in one file;
- BLIP's coco_karpathy_{train,val,test}.json / flickr30k_{train,val,test}.json: rows {"image", "caption"}, where
  caption is one text (train) or the list of the image's texts; "image_name" and "captions" are read as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from vlbench.errors import UserError, did_you_mean

from ._files import identifier_of, inside, other_year, read_json, refuse, text_of, texts_of, whole_number

Dataset = Literal["coco", "flickr30k"]
# Split -> the splits of Karpathy's file it joins: restval is what val2014 has left, and everybody trains on it.
SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
BLIP = {"coco": "coco_karpathy_{}.json", "flickr30k": "flickr30k_{}.json"}
FLICKR_FOLDERS = ("flickr30k-images", "flickr30k_images", "images/flickr30k-images", "images")
COCO_NUMBER = re.compile(r"(?:.*\D)?(\d+)")  # the id is the last number of the name
COCO_FOLDER = re.compile(r"COCO_([a-z]+\d{4})_\d+")


class Entry(NamedTuple):
    """One image. image_id: COCO's number without leading zeros, Flickr30K's file name without its ending.
    caption_ids: Karpathy's sentence ids, or "<image id>_<position>" where the file has none."""

    image_id: str
    image: Path
    captions: list[str]
    caption_ids: list[str]


class _Row(NamedTuple):
    """An image as a file states it. image: "val2014/COCO_val2014_000000000042.jpg"; Flickr30K: the file's name."""

    image_id: str
    image: PurePosixPath
    captions: list[str]
    caption_ids: list[str]


def entries(root: Path, dataset: Dataset, split: str, references: bool = False) -> list[Entry]:
    """The images of a split in the file's order. references: take the captions of val and test from BLIP's
    coco_karpathy_{val,test}_gt.json where it lies beside, as BLIP's evaluation does."""
    path = _source(root, dataset, split)
    if path is None:
        raise UserError(_wanted(root, dataset, split))
    rows = _rows(path, dataset, split)
    if references and not _is_karpathys(path):
        rows = _with_references(rows, path.with_name(f"{path.stem}_gt.json"))
    refuse(_twice(row.image_id for row in rows), f"{path} has images twice in {split}")
    refuse((row.image_id for row in rows if not row.captions), f"{path} has images without a caption in {split}")
    refuse(_twice(i for row in rows for i in row.caption_ids), f"{path} has caption ids twice in {split}")
    lacking = _lacking_folders(root, dataset, rows)
    if lacking:
        raise UserError(" ".join(lacking))
    find = cache(lambda folder: _listing(_folder(root, dataset, folder)))
    places = [find(row.image.parent.as_posix()) for row in rows]
    pairs = list(zip(rows, places, strict=True))
    refuse((row.image.as_posix() for row, (_, names) in pairs if row.image.name not in names), f"{root} lacks images")
    return [Entry(row.image_id, folder / row.image.name, row.captions, row.caption_ids) for row, (folder, _) in pairs]


def missing(root: Path, dataset: Dataset, split: str) -> list[str]:
    """One sentence for each file or folder that the split needs and `root` lacks."""
    path = _source(root, dataset, split)
    if path is None:
        usual = _lacking_folders(root, dataset, _usual(dataset, split))
        return [_wanted(root, dataset, split), *usual]
    if not _lacking_folders(root, dataset, _usual(dataset, split)):
        return []
    return _lacking_folders(root, dataset, _rows(path, dataset, split))  # the file may name other folders


def _source(root: Path, dataset: Dataset, split: str) -> Path | None:
    if split not in SPLITS:
        raise UserError(f"{dataset} has no split {split!r}. {did_you_mean(split, SPLITS)}")
    names = (f"dataset_{dataset}.json", BLIP[dataset].format(split))
    places = (folder / name for name in names for folder in (root, root / "annotations"))
    return next((path for path in places if path.is_file()), None)


def _is_karpathys(path: Path) -> bool:
    return path.name.startswith("dataset_")


def _wanted(root: Path, dataset: Dataset, split: str) -> str:
    blips = BLIP[dataset].format(split)
    return f"{root} should hold Karpathy's dataset_{dataset}.json, or BLIP's {blips} (or have it in annotations/)."


def _usual(dataset: Dataset, split: str) -> list[_Row]:
    """Rows with the folders of the published files, which spares reading these before each run."""
    folders = ["train2014", "val2014"] if split == "train" else ["val2014"]
    return [_Row("", PurePosixPath(folder, "-"), [], []) for folder in (folders if dataset == "coco" else ["."])]


def _lacking_folders(root: Path, dataset: Dataset, rows: Sequence[_Row]) -> list[str]:
    folders = sorted({row.image.parent.as_posix() for row in rows})
    return [_advice(root, dataset, folder) for folder in folders if not _folder(root, dataset, folder).is_dir()]


def _advice(root: Path, dataset: Dataset, folder: str) -> str:
    if dataset == "flickr30k":
        return f"{root / FLICKR_FOLDERS[0]} should hold the images of Flickr30K."
    return f"{_folder(root, dataset, folder)} should hold the images of {folder}{other_year(root, folder)}."


def _folder(root: Path, dataset: Dataset, name: str) -> Path:
    """The folder of the images that the annotations call `name`."""
    if dataset == "flickr30k":
        places = [root / folder for folder in FLICKR_FOLDERS]
    else:
        places = [root / name, root / "images" / name]
    return next((place for place in places if place.is_dir()), places[0])


def _listing(folder: Path) -> tuple[Path, frozenset[str]]:
    try:
        return folder, frozenset(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"The image folder {folder} cannot be read: {error.strerror}.") from None


def _rows(path: Path, dataset: Dataset, split: str) -> list[_Row]:
    if not _is_karpathys(path):
        return _grouped(_parsed(read_json(path), path, dataset), path, dataset)
    content = read_json(path, _fold_sentence)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise UserError(f"{path} is not Karpathy's file: it has no list 'images'.")
    kept = [row for row in images if not isinstance(row, dict) or row.get("split") in SPLITS[split]]
    if not kept:
        raise UserError(f"{path} has no images of {split}.")
    return [_karpathys(row, number, path, dataset) for number, row in enumerate(kept)]


def _fold_sentence(row: dict[str, Any]) -> Any:
    """{"raw": text, "sentid": id, "tokens": ...} -> (id, text), at once: COCO has 616,000 of these records."""
    return (row["sentid"], row["raw"]) if "raw" in row and "sentid" in row else row


def _karpathys(row: Any, number: int, path: Path, dataset: Dataset) -> _Row:
    try:
        ids = [identifier_of(sentence_id) for sentence_id, _ in row["sentences"]]
        captions = [text_of(caption) for _, caption in row["sentences"]]
        name = f"{row['filepath']}/{row['filename']}" if dataset == "coco" else row["filename"]
        image_id = str(whole_number(row["cocoid"])) if dataset == "coco" else PurePosixPath(name).stem
        number_of_file = COCO_NUMBER.fullmatch(PurePosixPath(name).stem) if dataset == "coco" else None
        if number_of_file and str(int(number_of_file[1])) != image_id:
            raise ValueError(f"it is of image {image_id} and names the file {name}, which is another image's")
        return _Row(image_id, inside(name, path), captions, ids)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: image {number} of the split is not valid: {error!r}.") from None


def _parsed(content: Any, path: Path, dataset: Dataset) -> list[tuple[PurePosixPath, list[str] | str]]:
    """Image and captions of each row in BLIP's layout."""
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} should be a JSON list of images with captions, as BLIP's {path.name} is.")
    images: list[tuple[PurePosixPath, list[str] | str]] = []
    for number, row in enumerate(content):
        try:
            captions = row["caption"] if "caption" in row else row["captions"]
            texts = captions if isinstance(captions, str) else list(texts_of(captions))
            name = row["image"] if "image" in row else "/".join((*_optional(row, "file_path"), row["image_name"]))
            images.append((_image(inside(name, path), dataset), texts))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: entry {number} is not valid: {error!r}.") from None
    return images


def _optional(row: dict[str, Any], key: str) -> tuple[str, ...]:
    return (row[key],) if key in row else ()


def _image(image: PurePosixPath, dataset: Dataset) -> PurePosixPath:
    """Flickr30K's folder goes, as its name varies; COCO's comes from the file's name where it was left out."""
    if dataset == "flickr30k":
        return PurePosixPath(image.name)
    named = COCO_FOLDER.match(image.name)
    return PurePosixPath(named[1], image) if named and len(image.parts) == 1 else image


def _image_id(image: PurePosixPath, path: Path, dataset: Dataset) -> str:
    if dataset == "flickr30k":
        return image.stem
    match = COCO_NUMBER.fullmatch(image.stem)
    if not match:
        raise UserError(f"{path} names the image {image.as_posix()!r}, whose name does not end in COCO's number.")
    return str(int(match[1]))


def _grouped(rows: Iterable[tuple[PurePosixPath, list[str] | str]], path: Path, dataset: Dataset) -> list[_Row]:
    """One row an image. A train file has a row a caption, and the rows of one image need not be neighbours."""
    captions_of: dict[PurePosixPath, list[str]] = {}
    listed: list[_Row] = []
    for image, captions in rows:
        if isinstance(captions, str) and image in captions_of:
            captions_of[image].append(captions)
            continue
        texts = [captions] if isinstance(captions, str) else captions
        if isinstance(captions, str):
            captions_of[image] = texts
        listed.append(_Row(_image_id(image, path, dataset), image, texts, []))
    return [row._replace(caption_ids=[f"{row.image_id}_{k}" for k in range(len(row.captions))]) for row in listed]


def _with_references(rows: Sequence[_Row], path: Path) -> list[_Row]:
    """The rows with the captions of a file in COCO's layout ({"annotations": [{"image_id", "caption", "id"}]})."""
    if not path.is_file():
        return list(rows)
    given = coco_captions(path)
    refuse({row.image_id for row in rows} - given.keys(), f"{path} lacks captions of images")
    return [
        row._replace(
            captions=[text for _, text in given[row.image_id]], caption_ids=[i for i, _ in given[row.image_id]]
        )
        for row in rows
    ]


def coco_captions(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Image id -> (annotation id, caption) in the file's order, of a file in the official COCO captions layout."""
    content = read_json(path)
    rows = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} is not a COCO captions file: it has no list 'annotations'.")
    captions_of: dict[str, list[tuple[str, str]]] = {}
    for number, row in enumerate(rows):
        try:
            pair = str(whole_number(row["id"])), text_of(row["caption"])
            captions_of.setdefault(str(whole_number(row["image_id"])), []).append(pair)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: entry {number} of 'annotations' is not valid: {error!r}.") from None
    refuse(_twice(i for pairs in captions_of.values() for i, _ in pairs), f"{path} has annotation ids twice")
    return captions_of


def _twice(ids: Iterable[str]) -> list[str]:
    return [i for i, count in Counter(ids).items() if count > 1]
