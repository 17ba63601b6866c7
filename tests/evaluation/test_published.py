"""Ours beside published numbers: of one protocol and language, or not at all."""

import numpy as np
import pandas as pd
import pytest

from tvrkit import files
from tvrkit.evaluation import published
from tvrkit.evaluation.evaluate import Evaluation
from tvrkit.settings import EvalConfig

CARD = {"protocol": "msrvtt/1k-A", "partial": False, "mismatches": []}


@pytest.fixture(scope="module")
def ours():
    scores, ids = np.eye(6, dtype=np.float32), [str(i) for i in range(6)]
    settings = EvalConfig(bootstrap=20, postprocess=["dsl"])
    labels = {"split": "test", "selection": "last", "complete": True, "missing": []}
    return {"mine": ("ViT-B/32", Evaluation.of(scores, ids, ids, np.arange(6), settings, **labels))}


def test_only_rows_of_the_same_protocol_and_language(ours):
    table = published.beside(ours, CARD, "en")
    theirs = table[~table.trust.str.startswith("ours")]
    raw = pd.read_csv(files.PACKAGE.parent / "data" / published.FILE, keep_default_na=False)
    expected = raw[
        (raw.dataset == "msrvtt") & (raw.protocol == "msrvtt/1k-A") & (raw.language == "en")
    ]
    assert len(theirs) == len(expected) > 20
    assert sorted(theirs["R@1"]) == sorted(expected["R@1"].astype(float))
    assert not theirs.method.str.startswith("HMMC").any()  # its source names no protocol
    assert set(theirs.trust) == {"seen", "second-hand"}


def test_ours_are_there_raw_and_post_processed_in_rows_of_their_own(ours):
    table = published.beside(ours, CARD, "en").query("trust == 'ours'")
    assert table[["direction", "postprocess", "R@1"]].to_numpy().tolist() == [
        ["t2v", "raw", 100.0],
        ["t2v", "dsl", 100.0],
        ["v2t", "raw", 100.0],
        ["v2t", "dsl", 100.0],
    ]
    assert set(table.source) == {"this run"}


@pytest.mark.parametrize("broken", [{"partial": True}, {"mismatches": ["test: 999 videos"]}])
def test_ours_on_part_of_the_set_is_labelled(ours, broken):
    table = published.beside(ours, CARD | broken, "en")
    assert set(table.trust) == {"seen", "second-hand", "ours, not comparable"}
    name, (backbone, one) = next((name, pair) for name, pair in ours.items())
    missing = Evaluation(**{**vars(one), "metrics": one.metrics | {"complete": False}})
    table = published.beside({name: (backbone, missing)}, CARD, "en")
    assert "ours" not in set(table.trust)


@pytest.mark.parametrize(
    ("protocol", "language"),
    [("shapes", "en"), ("msrvtt/full", "en"), ("msrvtt/1k-A", "zh"), ("", "en")],
)
def test_nothing_stands_beside_ours_where_nothing_is_published(ours, protocol, language):
    if protocol == "":  # there are such rows, and they are nobody's
        assert (published.table().query("language == @language").protocol == "").any()
    assert len(published.beside(ours, CARD | {"protocol": protocol}, language)) == 0


def test_no_file_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    assert len(published.table()) > 50  # the checkout's
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "tvrkit")
    with pytest.raises(FileNotFoundError, match=r"no published_results\.csv in data/"):
        published.table()
