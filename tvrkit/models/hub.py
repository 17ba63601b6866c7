"""Files from the Hugging Face hub: from the local cache, the network, or an error that says what to
fetch."""

import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # open_clip's names
TEXT_FILES = ["*.json", "*.model", "*.txt"]  # of a transformers model, less its weights
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
    where = "put it anywhere and set backbone.pretrained to its path"
    return _cached_or_fetched(f"{owner}/{name}", [file] if file else WEIGHT_FILES, (), where)


def folder(repository: str, file: str, patterns: Sequence[str] = TEXT_FILES) -> Path:
    """The folder of a repository, such as a transformers model's configuration and tokenizer; a
    folder stands for itself.

    Args:
        repository: name on the hub, or a folder.
        file: what the folder must contain.
        patterns: of the files to fetch.

    Raises:
        FileNotFoundError: neither there, cached nor reachable; names the file and where to put it.
    """
    if (Path(repository) / file).is_file():
        return Path(repository)
    target = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    where = f"`hf download {repository}` where there is a network, and copy "
    where += f"{target.name} to {target.parent}"
    return _cached_or_fetched(repository, [file], patterns, where).parent


def _cached_or_fetched(
    repository: str, names: Sequence[str], patterns: Sequence[str], where: str
) -> Path:
    """The first of the named files that is there, beside those that fit the patterns."""
    for local in (True, False):
        for name in names if local or reachable() else ():
            options: Any = {"allow_patterns": [name, *patterns], "local_files_only": local}
            # neither in the cache nor under this name, or not for everyone
            with suppress(EntryNotFoundError, HfHubHTTPError):
                path = Path(snapshot_download(repository, **options)) / name
                if path.is_file():
                    return path
    address = f"{constants.ENDPOINT}/{repository}/resolve/main/{names[0]}"
    why = f"{names[0]} of {repository} could not be had"
    raise FileNotFoundError(f"{why}; fetch {address}: {where}")


def reachable() -> bool:
    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT).close()
    except OSError as error:
        return isinstance(error, urllib.error.HTTPError)  # it answered
    return True
