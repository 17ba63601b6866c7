"""A home of one's own for what the tests write."""

import pytest


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    return tmp_path
