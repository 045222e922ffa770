"""The mini world on disk, in the official layouts of VQAv2 and ImageNet, so that the real readers read it.

A data set is built once into the user's cache. Its digest covers the rendered pixels and every text file,
and is pinned here: the generator cannot change unless WORLD_VERSION and DIGESTS change with it. Pixels are
hashed before JPEG, because encoders differ in the last bit between versions of libjpeg.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from vlbench.data.questions import Answers, Question, ask
from vlbench.data.render import UInt8Array, render
from vlbench.data.scenes import COLORS, SHAPES, salient_scene, scene
from vlbench.errors import RunFailed

WORLD_VERSION = 1
DIGESTS = {
    "vqav2": "d2d05a79f0721d8d2e325f537a23fee754db4f2e29f0012a1a4bc9ecb1717c64",
    "imagenet": "f9e82cc581b4ff503508b0d5b7732923b1429fc9600c3ff36f47e2628408389b",
}
MARKER = "COMPLETE"
PROGRESS_STEP = 100  # images between two reports

Progress = Callable[[int, int], None]  # (images done, images in all)


@dataclass(frozen=True)
class VqaSplit:
    """One split of VQAv2: how the official files name it, and how large the mini world makes it."""

    name: str
    subset: str
    folder: str  # of the images; those of test-dev are images of test
    images: int
    questions_per_image: int
    first_image_id: int
    annotated: bool = True


VQA_SPLITS = (
    VqaSplit("train", "train2014", "train2014", images=6000, questions_per_image=12, first_image_id=1),
    VqaSplit("val", "val2014", "val2014", images=2000, questions_per_image=2, first_image_id=10_001),
    VqaSplit("test", "test-dev2015", "test2015", 200, 2, first_image_id=20_001, annotated=False),
)
IMAGENET_CLASSES = tuple((shape, color) for shape in SHAPES for color in COLORS)
IMAGENET_IMAGES = {"train": 6000, "val": 2000}


def mini_root(name: str, progress: Progress | None = None) -> Path:
    """The folder of a mini data set, built on first use."""
    final = cache_folder() / f"mini-v{WORLD_VERSION}" / name
    if not _is_complete(name, final):
        final.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that the rename stays within one file system and is atomic.
        draft = final.with_name(f".{name}-{uuid.uuid4().hex}")
        try:
            BUILDERS[name](draft, progress)
            _publish(name, draft, final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return final


def world_digest(name: str) -> str:
    """The pinned SHA-256 of a mini data set: it enters the identity of every cell that reads it."""
    return DIGESTS[name]


def build_vqav2(root: Path, progress: Progress | None = None) -> None:
    """Write the mini VQAv2 under `root`."""
    writer = Writer(root, sum(split.images for split in VQA_SPLITS), progress)
    for split in VQA_SPLITS:
        write_vqa_split(writer, split)
    _seal("vqav2", writer)


def build_imagenet(root: Path, progress: Progress | None = None) -> None:
    """Write the mini ImageNet under `root`."""
    writer = Writer(root, sum(IMAGENET_IMAGES.values()), progress)
    for split, images in IMAGENET_IMAGES.items():
        write_imagenet_split(writer, split, images)
    _seal("imagenet", writer)


BUILDERS: dict[str, Callable[[Path, Progress | None], None]] = {
    "vqav2": build_vqav2,
    "imagenet": build_imagenet,
}


class Writer:
    """Writes files under a root and hashes what they say, in the order written."""

    def __init__(self, root: Path, images: int, progress: Progress | None = None) -> None:
        self.root = root
        self._hash = hashlib.sha256()
        self._done, self._total, self._progress = 0, images, progress

    def image(self, path: str, pixels: UInt8Array) -> None:
        self._hash.update(path.encode() + b"\n" + pixels.tobytes())
        Image.fromarray(pixels).save(self.root / path, format="JPEG", quality=95, subsampling="4:4:4")
        self._done += 1
        if self._progress and (self._done % PROGRESS_STEP == 0 or self._done == self._total):
            self._progress(self._done, self._total)

    def text(self, path: str, text: str) -> None:
        self._hash.update(path.encode() + b"\n" + text.encode())
        (self.root / path).write_bytes(text.encode())

    def folder(self, path: str) -> None:
        (self.root / path).mkdir(parents=True, exist_ok=True)

    def digest(self) -> str:
        return self._hash.hexdigest()


def write_vqa_split(writer: Writer, split: VqaSplit) -> None:
    """Images, questions and, unless the split hides them, annotations."""
    writer.folder(split.folder)
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(split.images):
        picture = scene(split.name, index)
        image_id = split.first_image_id + index
        writer.image(f"{split.folder}/COCO_{split.folder}_{image_id:012d}.jpg", render(picture))
        for k, (question, answers) in enumerate(ask(picture, split.name, index, split.questions_per_image)):
            question_id = image_id * 1000 + k
            questions.append({"image_id": image_id, "question": question.text, "question_id": question_id})
            annotations.append(_annotation(image_id, question_id, question, answers))
    writer.text(f"v2_OpenEnded_mscoco_{split.subset}_questions.json", _vqa_json(split, questions=questions))
    if split.annotated:
        writer.text(f"v2_mscoco_{split.subset}_annotations.json", _vqa_json(split, annotations=annotations))


def _annotation(image_id: int, question_id: int, question: Question, answers: Answers) -> dict[str, Any]:
    return {
        "question_type": question.question_type,
        "multiple_choice_answer": question.truth,
        "answers": _answer_rows(answers),
        "image_id": image_id,
        "answer_type": question.answer_type,
        "question_id": question_id,
    }


@lru_cache(maxsize=64)  # four questions in five are unanimous, and share their rows with all of the same answer
def _answer_rows(answers: Answers) -> list[dict[str, str | int]]:
    return [
        {"answer": human.answer, "answer_confidence": human.confidence, "answer_id": number}
        for number, human in enumerate(answers, start=1)
    ]


def _vqa_json(split: VqaSplit, **rows: Sequence[dict[str, Any]]) -> str:
    header = {
        "info": {
            "description": "The mini world of vlbench in the format of VQA v2.0.",
            "url": "",
            "version": str(WORLD_VERSION),
            "year": 2024,
            "contributor": "vlbench",
            "date_created": "2024-05-27 00:00:00",
        },
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": {"url": "https://www.apache.org/licenses/LICENSE-2.0", "name": "Apache License 2.0"},
        "data_subtype": split.subset,
    }
    return json.dumps(header | rows, separators=(",", ":"))


def write_imagenet_split(writer: Writer, split: str, images: int) -> None:
    """Images by class, in turn, and the list of class names that the Kaggle release carries."""
    for label in range(len(IMAGENET_CLASSES)):
        writer.folder(f"{split}/{wnid(label)}")
    for index in range(images):
        label = index % len(IMAGENET_CLASSES)
        name = f"{wnid(label)}_{index}" if split == "train" else f"ILSVRC2012_val_{index + 1:08d}"
        pixels = render(salient_scene(split, index, *IMAGENET_CLASSES[label]))
        writer.image(f"{split}/{wnid(label)}/{name}.JPEG", pixels)
    names = (f"{wnid(label)} {color} {shape}\n" for label, (shape, color) in enumerate(IMAGENET_CLASSES))
    writer.text("LOC_synset_mapping.txt", "".join(names))


def wnid(label: int) -> str:
    """A name in the form of a WordNet id, in a range that WordNet does not use."""
    return f"n9{label:07d}"


def _seal(name: str, writer: Writer) -> None:
    if writer.digest() != DIGESTS[name]:
        raise RunFailed(
            f"The mini data set {name!r} came out with digest {writer.digest()}, expected {DIGESTS[name]} "
            f"(world version {WORLD_VERSION}). If its generator was changed on purpose, raise WORLD_VERSION "
            "and pin the new digest."
        )
    (writer.root / MARKER).write_text(DIGESTS[name] + "\n", encoding="ascii")


def _is_complete(name: str, folder: Path) -> bool:
    try:
        return (folder / MARKER).read_bytes().strip() == DIGESTS[name].encode()
    except OSError:
        return False


def _publish(name: str, draft: Path, final: Path) -> None:
    """Move a finished build into place, unless another process has done so meanwhile."""
    while True:
        try:
            draft.rename(final)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _is_complete(name, final):
            return
        # A damaged folder is moved away whole, never emptied in place. Two processes that repair at the same
        # moment may move each other's good folder; the next turn puts an equal one there.
        spoilt = draft.with_name(draft.name + "-spoilt")
        with suppress(FileNotFoundError):
            final.rename(spoilt)
        shutil.rmtree(spoilt, ignore_errors=True)


def cache_folder() -> Path:
    if chosen := os.environ.get("VLBENCH_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlbench"
