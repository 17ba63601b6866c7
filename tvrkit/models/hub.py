"""Files from the Hugging Face hub: from the local cache, the network, or an error that says what to
fetch."""

import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
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
    candidates = [file] if file else WEIGHT_FILES

    def fetch(local: bool) -> Path | None:
        for candidate in candidates:
            with suppress(EntryNotFoundError):  # also raised for what is not in the cache
                return Path(hf_hub_download(f"{owner}/{name}", candidate, local_files_only=local))
        return None

    where = "put it anywhere and set backbone.pretrained to its path"
    return _cached_or_fetched(fetch, f"{owner}/{name}", candidates[0], where)


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

    def fetch(local: bool) -> Path | None:
        with suppress(EntryNotFoundError, HfHubHTTPError):  # no such name, or not for everyone
            path = snapshot_download(repository, allow_patterns=[*patterns], local_files_only=local)
            return Path(path) if (Path(path) / file).is_file() else None
        return None

    target = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    where = f"`hf download {repository}` where there is a network, and copy "
    where += f"{target.name} to {target.parent}"
    return _cached_or_fetched(fetch, repository, file, where)


Fetch = Callable[[bool], Path | None]  # from the cache only?


def _cached_or_fetched(fetch: Fetch, repository: str, file: str, where: str) -> Path:
    path = fetch(True)
    if path is None and _reachable():
        path = fetch(False)
    if path is None:
        address = f"{constants.ENDPOINT}/{repository}/resolve/main/{file}"
        message = f"{file} of {repository} could not be had; fetch {address}: {where}"
        raise FileNotFoundError(message)
    return path


def _reachable() -> bool:
    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT).close()
    except OSError as error:
        return isinstance(error, urllib.error.HTTPError)  # it answered
    return True
