"""Files of the hub: the cache first, then the network, else an error that says what to fetch."""

import pytest

from tvrkit.models import hub


def test_the_cache_comes_before_the_network_and_safetensors_before_pickles(monkeypatch, tmp_path):
    asked, cache = [], tmp_path / "cache"
    cache.mkdir()

    def download(repository, *, allow_patterns, local_files_only):
        (file,) = allow_patterns
        asked.append((file, local_files_only))
        if (file, local_files_only) == stored:
            (cache / file).write_bytes(b"")
        elif local_files_only:
            raise hub.EntryNotFoundError(file)
        return str(cache)

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    safe, pickled = hub.WEIGHT_FILES
    stored = (pickled, True)
    assert hub.weights("owner/name/") == cache / pickled
    assert asked == [(safe, True), (pickled, True)]
    asked.clear()
    (cache / pickled).unlink()
    stored = (safe, False)
    assert hub.weights("owner/name/") == cache / safe
    assert asked == [(safe, True), (pickled, True), (safe, False)]


def test_a_folder_stands_for_itself_and_what_is_not_there_is_named(tmp_path, monkeypatch):
    def nothing(*args, **options):
        raise hub.EntryNotFoundError("not cached")

    (tmp_path / "config.json").write_text("{}")
    assert hub.folder(str(tmp_path), "config.json") == tmp_path
    monkeypatch.setattr(hub, "snapshot_download", nothing)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt of owner/name could not be had"):
        hub.folder("owner/name", "vocab.txt")
