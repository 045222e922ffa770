"""`vlbench push DIR OWNER/NAME`: a proved export, uploaded to the hub as one commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..disk.digests import file_digest
from ..disk.paths import inside
from ..disk.storage import read_json
from ..errors import RunFailed, UserError
from ..runtimes.hub_folder import CARD
from .export import PROOF

REPOSITORY = r"[\w-][\w.-]*/[\w-][\w.-]*"


def push(folder: Path, repository: str, *, public: bool) -> str:
    """Upload what `vlbench export --to hub-folder` wrote; returns the address. A repository that is not there is made,
    private where `public` is False. Raises UserError where the folder is no export or was changed since its proof (but
    for the model card, which is there to be edited), without a login, and for a name that is none; RunFailed where the
    hub refuses."""
    if not re.fullmatch(REPOSITORY, repository):
        raise UserError(f"{repository!r} should be OWNER/NAME, the repository on the hub.")
    files = proved_files(folder)
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx, or what came after it

    token = get_token()
    if not token:
        raise UserError("you are not logged in to the hub: run `hf auth login`, or set HF_TOKEN to one that may write.")
    hub = HfApi(endpoint=constants.ENDPOINT, token=token, library_name="vlbench")
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files]
    message = f"{read_json(folder / PROOF)['run']}, by vlbench"
    try:
        hub.create_repo(repository, private=not public, exist_ok=True)
        made: Any = hub.create_commit(repository, operations, commit_message=message)
    except (HTTPError, OSError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise RunFailed(f"the hub did not take {repository} ({type(error).__name__}): {text}") from error
    return str(made.commit_url)


def proved_files(folder: Path) -> list[str]:
    """Names of what is uploaded: the files of the proof, the proof, and the model card. Raises UserError where one of
    them lacks, is a link, or was changed."""
    if not (folder / PROOF).is_file() or not (folder / CARD).is_file():
        raise UserError(f"{folder} was not written for the hub: vlbench export RUN {folder} --to hub-folder")
    proof = read_json(folder / PROOF)
    digests = proof.get("files") if isinstance(proof, dict) else None
    if not isinstance(digests, dict) or proof.get("runtime") != "hub-folder":
        raise UserError(f"{folder / PROOF} is no proof of a folder for the hub: export the run again.")
    for name, digest in digests.items():
        file = folder / inside(name, folder / PROOF, "file")
        if file.is_symlink() or not file.is_file():
            raise UserError(f"{file} is missing, or a link: export the run again.")
        if name != CARD and file_digest(file) != digest:
            raise UserError(f"{file} was changed after its proof: export the run again.")
    return sorted({*digests, PROOF, CARD})
