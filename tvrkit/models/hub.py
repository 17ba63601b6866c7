"""Files from the Hugging Face hub: from the local cache, the network, or an error that says what to
fetch."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # open_clip's names
TEXT_TOWER_FILES = [
    "*.json",
    "*.model",
    "*.txt",
]  # configuration and tokenizer of a transformers model
TIMEOUT = 5.0  # seconds; the hub's client would retry for minutes


def weights(repository: str) -> Path:
    """The weights file of an open_clip model.

    Args:
        repository: "owner/name/" or "owner/name/file", as open_clip's table of tags has it.

    Raises:
        FileNotFoundError: neither cached nor reachable; names the file and the setting that takes
            its path.
    """
    owner, name, file = repository.split("/")

    def fetch(local: bool) -> Path | None:
        for candidate in (file,) if file else WEIGHT_FILES:
            try:
                return Path(hf_hub_download(f"{owner}/{name}", candidate, local_files_only=local))
            except EntryNotFoundError:  # also raised for what is not in the cache
                continue
        return None

    where = "put it anywhere and set backbone.pretrained to its path"
    return _cached_or_fetched(fetch, f"{owner}/{name}", file or WEIGHT_FILES[0], where)


def folder(repository: str, file: str) -> Path:
    """The folder with a transformers model's configuration and tokenizer; a folder stands for
    itself.

    Args:
        repository: name on the hub, or a folder.
        file: what the folder must contain.

    Raises:
        FileNotFoundError: neither there, cached nor reachable; names the file and where to put it.
    """
    if (Path(repository) / file).is_file():
        return Path(repository)

    def fetch(local: bool) -> Path | None:
        try:
            found = snapshot_download(
                repository, allow_patterns=TEXT_TOWER_FILES, local_files_only=local
            )
        except EntryNotFoundError:
            return None
        return Path(found) if (Path(found) / file).is_file() else None

    target = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    where = f"`hf download {repository}` where there is a network, and copy {target.name} to {target.parent}"
    return _cached_or_fetched(fetch, repository, file, where)


def _cached_or_fetched(
    fetch: Callable[[bool], Path | None], repository: str, file: str, where: str
) -> Path:
    path = fetch(True)
    if path is None and _reachable():
        path = fetch(False)
    if path is None:
        address = f"{constants.ENDPOINT}/{repository}/resolve/main/{file}"
        raise FileNotFoundError(
            f"{file} of {repository} could not be had; fetch {address}: {where}"
        )
    return path


def _reachable() -> bool:
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(
            urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT
        ).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError:
        return False
    return True
