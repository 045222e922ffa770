"""Prompts of the checkpoint's own chat template, and preprocessing of its own processor file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from vlbench.disk.storage import read_json
from vlbench.errors import UserError

TURN = "{}"  # where the whole user turn stands in "chat"
# Where transformers keeps a prompt template, as {"chat_template": ...} or as the text alone.
TEMPLATES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")
LONGEST, LINES = 10**6, 10**6  # characters of a template, and lines that it runs for one conversation
TEMPLATE = "<template>"
TILES = 1000  # the published processors have at most 40
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def chat_of(folder: Path, tokenizer: Any, mark: str) -> dict[str, str]:
    """ "chat": a conversation that begins with the user's turn and ends where the model goes on, and "image": how an
    image stands in that turn, by the template in `folder`. "words": the conversation where the turn does not begin with
    an image, if that is another ("User:<image>", "User: words"). mark: the tokenizer's word for an image. Raises
    UserError where there is no template, or none with a place for both."""
    for name in TEMPLATES:
        text = template_in(folder / name)
        if text:
            words = _filled(text, [{"type": "text", "text": TURN}], tokenizer, folder / name)
            both = _filled(text, [{"type": "image"}, {"type": "text", "text": TURN}], tokenizer, folder / name)
            before, turn, after = words.partition(TURN)
            start = before if both.startswith(before) else _shared(before, both)
            image = both.removeprefix(start).removesuffix(turn + after)
            if not turn or mark not in image or both != start + image + turn + after:
                raise UserError(
                    f"the chat template in {folder / name} has no place for {mark} and a question: put that of the "
                    "checkpoint there."
                )
            chat = start + turn + after
            return {"chat": chat, "image": image, **({} if words == chat else {"words": words})}
    raise UserError(
        f"{folder} has no chat template, and without it nothing is known of how the model is asked: put its "
        f'{TEMPLATES[0]} or {TEMPLATES[1]} there, or "prompts" into config.json.'
    )


def _shared(a: str, b: str) -> str:
    """The beginning that both have."""
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]


def template_in(file: Path) -> str:
    """The prompt template of one of TEMPLATES; empty where there is none. Raises UserError where it cannot be read."""
    if not file.is_file():
        return ""
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text) if file.suffix == ".json" else {"chat_template": text}
    except (OSError, ValueError) as error:  # ValueError: neither UTF-8 nor JSON
        raise UserError(f"{file} cannot be read ({error}): put the one of its checkpoint there.") from None
    template = content.get("chat_template") if isinstance(content, dict) else None
    return template if isinstance(template, str) else ""


def _filled(template: str, content: list[dict[str, str]], tokenizer: Any, file: Path) -> str:
    """One turn of content."""
    return filled([{"role": "user", "content": content}], template, tokenizer, f"the chat template in {file}")


def filled(turns: list[dict[str, Any]], template: str, tokenizer: Any, what: str) -> str:
    """A conversation as transformers fills the template: a program, which runs in jinja's sandbox and for a bounded
    number of lines. Raises UserError, which begins with `what`, where it cannot be filled in."""
    if len(template) > LONGEST:
        raise UserError(f"{what} has {len(template)} characters, and should have {LONGEST} at most.")
    try:
        with _bounded():
            text: str = tokenizer.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=True
            )
    except Exception as error:  # a template divides by zero, recurses without end, calls what is not there
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
        raise UserError(f"{what} cannot be filled in ({reason}): put the one of its checkpoint there.") from None
    return text


@contextmanager
def _bounded() -> Iterator[None]:
    """Raise RuntimeError after LINES lines of templates: loops within loops would take days. jinja makes Python of a
    template, and calls its file TEMPLATE."""
    lines = 0

    def called(frame: FrameType, event: str, argument: Any) -> Any:
        return line if frame.f_code.co_filename == TEMPLATE else None

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += 1
        if lines > LINES:
            raise RuntimeError(f"it runs for more than {LINES} lines")
        return line

    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(before)


def ends_in(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """The tokens that end what a model writes, by the folder's generation_config.json, or else by its config.json: the
    first of them that says any."""
    file = folder / "generation_config.json"
    for said in (read_json(file) if file.is_file() else None, config, config.get("text_config")):
        value = said.get("eos_token_id") if isinstance(said, Mapping) else None
        ids = value if isinstance(value, list) else [value]
        if ids and all(type(number) is int for number in ids):
            return sorted(ids)
    return []


def processor_of(folder: Path) -> dict[str, Any]:
    """What the folder says of its image processor. Raises UserError where it says nothing."""
    for name in PROCESSORS:
        file = folder / name
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}): put the one of its checkpoint there.") from None
        settings = content.get("image_processor", content if "image_processor_type" in content else None)
        if isinstance(settings, dict):
            return dict(settings)
    raise UserError(
        f"{folder} does not say how its images are prepared: put the {PROCESSORS[1]} (or {PROCESSORS[0]}) of the "
        "checkpoint there."
    )


def refuse_many_tiles(asked: Any, name: str) -> None:
    """Raise UserError where an image may become more tiles, or its tiles stand in more shapes, than TILES: all shapes
    are tried for every image, and the library would not come to an end. asked: a number, or a list of shapes."""
    count = len(asked) if isinstance(asked, list) else asked
    if isinstance(count, int) and not 0 < count <= TILES:
        raise UserError(
            f"the image processor of this folder has {name} of {count:,}, and it should be from 1 to {TILES}: put the "
            "published settings there."
        )


def image_processor(settings: Mapping[str, Any], wanted: str) -> Any:
    """The library's image processor of the class `wanted`, set as `settings` says. Raises UserError where that is of
    another class."""
    import transformers

    kind = str(settings.get("image_processor_type", wanted))
    if kind.removesuffix("Fast") != wanted:
        raise UserError(
            f"the image processor of this folder is a {kind}, and this model's is a {wanted}: put the "
            f"{PROCESSORS[1]} of the checkpoint there."
        )
    refuse_many_tiles(settings.get("max_patches"), "max_patches")
    refuse_many_tiles(settings.get("image_grid_pinpoints"), "image_grid_pinpoints")
    try:
        return getattr(transformers, wanted).from_dict(dict(settings))
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError(
            f"the image processor of this folder cannot be built ({error}): put the published one."
        ) from None
