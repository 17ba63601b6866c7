"""TREC files read by another program give the kit's own recalls."""

from dataclasses import replace

import ir_measures
import numpy as np
import pytest
from ir_measures import Success

from tests.fakes import from_scores
from tvrkit.evaluation import export
from tvrkit.evaluation.export import write_trec

KINDS = {"t2v": "t2v", "v2t": "v2t", "v2t-captions": "first hit v2t"}


@pytest.fixture
def evaluation():
    """30 videos with 1 to 3 captions, no score twice."""
    owner = np.concatenate([np.arange(30), np.arange(20), np.arange(10)])
    scores = np.random.default_rng(0).normal(size=(60, 30))
    return from_scores(scores + (owner[:, None] == np.arange(30)), owner)


@pytest.mark.parametrize("kind", KINDS)
def test_success_of_ir_measures_is_the_kits_recall(evaluation, tmp_path, kind):
    write_trec(evaluation, tmp_path, "mine")
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / f"{kind}.qrels")))
    run = list(ir_measures.read_trec_run(str(tmp_path / f"{kind}.run")))
    found = ir_measures.calc_aggregate([Success @ k for k in (1, 5, 10)], qrels, run)
    for k in (1, 5, 10):
        ours = evaluation.metrics[f"{KINDS[kind]} R@{k}"]
        assert 0 < ours < 100
        assert 100 * found[Success @ k] == pytest.approx(ours)


def test_lines_are_those_of_trec(evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "DEPTH", 4)
    write_trec(evaluation, tmp_path / "new", "my run")
    lines = {path.name: path.read_text().splitlines() for path in (tmp_path / "new").iterdir()}
    assert set(lines) == {f"{kind}.{ending}" for kind in KINDS for ending in ("run", "qrels")}
    first = lines["t2v.run"][0].split(" ")
    best = evaluation.similarity[0].argmax()
    assert first[:4] == ["c0", "Q0", f"v{best}", "1"]
    assert np.float32(first[4]) == evaluation.similarity[0, best]
    assert first[5] == "my%20run"
    assert len(lines["t2v.run"]) == 60 * 4
    assert lines["t2v.qrels"][30] == "c30 0 v0 1"
    assert lines["v2t-captions.qrels"][:3] == ["v0 0 c0 1", "v0 0 c30 1", "v0 0 c50 1"]


@pytest.mark.parametrize(("ties", "rank"), [("pessimistic", "3"), ("optimistic", "1")])
def test_ties_stand_by_the_runs_rule(tmp_path, ties, rank):
    evaluation = from_scores(np.ones((3, 3)), np.arange(3), ties=ties)
    write_trec(evaluation, tmp_path, "mine")
    for kind in KINDS:
        lines = [line.split(" ") for line in (tmp_path / f"{kind}.run").read_text().splitlines()]
        assert {line[3] for line in lines if line[0][1:] == line[2][1:]} == {rank}


def test_ids_with_blanks_stay_one_column_and_apart(evaluation, tmp_path):
    ids = np.array(["a b", "a%20b", *evaluation.caption_ids[2:]])
    write_trec(replace(evaluation, caption_ids=ids), tmp_path, "mine")
    assert [line.split(" ")[0] for line in (tmp_path / "t2v.qrels").read_text().splitlines()][
        :2
    ] == ["a%20b", "a%2520b"]
