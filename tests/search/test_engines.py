"""Engines do the same work."""

import pytest

from tvrkit.search import engines, rows
from tvrkit.search.clips import find


@pytest.mark.parametrize("commit", [1, 5, 100])
def test_local_gives_each_file_once_and_whole(corpus, encoder, commit, monkeypatch):
    monkeypatch.setattr(engines, "COMMIT", commit)
    found, _ = find(corpus)
    columns = rows.schema(rows.shapes(encoder), encoder.method.backbone.width)
    tables = list(engines.local(found, encoder, columns, 10.0, 2))
    names = [name for table in tables for name in table["path"].to_pylist()]
    assert names == [file.path for file in found]
    assert len(tables) == -(-12 // commit)
