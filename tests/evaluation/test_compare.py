"""Tables and verdicts between evaluations; published numbers beside ours."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.fakes import from_scores, ranked
from tvrkit import files
from tvrkit.data.annotations import DATASETS
from tvrkit.data.splits import protocols
from tvrkit.evaluation import compare, statistics
from tvrkit.evaluation.postprocess import POSTPROCESS

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = ["R@1", "R@5", "R@10", "MdR", "MnR"]
KEY = [
    "dataset",
    "protocol",
    "language",
    "backbone",
    "method",
    "pretraining",
    "postprocess",
    "direction",
    "source",
]
ORACLE = Path(os.environ.get("TVRKIT_RESULTS", ROOT.parent / "shared" / "RESULTS.md"))


def test_table():
    perfect, poor = ranked([1] * 40), ranked([40] * 40)
    table = compare.table({"perfect": perfect, "poor": poor})
    assert table[["method", "direction"]].to_numpy().tolist() == [
        ["perfect", "t2v"],
        ["perfect", "v2t"],
        ["poor", "t2v"],
        ["poor", "v2t"],
    ]
    first = table.iloc[0]
    assert first["R@1"] == "100.0 [100.0, 100.0]"
    assert first["MdR"] == "1.0 [1.0, 1.0]"
    assert table.iloc[2]["R@10"] == "0.0 [0.0, 0.0]"
    assert first["rsum"].startswith(f"{perfect.metrics['rsum']:.1f} [")
    assert (table["queries"] == 40).all()
    assert list(table.columns[-4:]) == ["split", "selection", "ties", "complete"]


def test_table_has_a_column_of_its_own_for_each_post_processing():
    table = compare.table({"a": ranked([1, 2, 3], postprocess=["dsl"])})
    assert {"R@1", "dsl R@1", "dsl rsum"} <= set(table.columns)


def test_only_results_on_the_same_queries_are_compared():
    five, tied = ranked([1, 2, 3, 4, 5]), ranked([1, 2, 3, 4, 5])
    with pytest.raises(
        ValueError, match="a and b are not of the same queries: 5 and 4 caption_ids"
    ):
        compare.table({"a": five, "b": ranked([1, 2, 3, 4])})
    renamed = replace(tied, video_ids=tied.video_ids[::-1])
    with pytest.raises(ValueError, match="not of the same queries: 5 and 5 video_ids"):
        compare.pairwise({"a": [five], "b": [renamed]})
    tied.metrics["ties"] = "optimistic"
    with pytest.raises(ValueError, match="count ties differently: pessimistic and optimistic"):
        compare.table({"a": five, "b": tied})
    with pytest.raises(ValueError, match="one evaluation or more"):
        compare.table({})
    with pytest.raises(ValueError, match="two evaluations or more, got 1"):
        compare.pairwise({"a": [five]})


def test_seeds_are_pooled_video_by_video():
    rng = np.random.default_rng(0)
    a, b = ([ranked(rng.integers(1, 4, 12), seed) for seed in range(3)] for _ in range(2))
    table = compare.pairwise({"a": a, "b": b}).set_index("metric")
    for way in ("t2v", "v2t"):
        hits = [[(each.ranks[way] == 1).mean() for each in side] for side in (a, b)]
        row = table.loc[f"{way} R@1"]
        assert row["difference"] == pytest.approx(100 * (np.mean(hits[0]) - np.mean(hits[1])))
        assert row["seeds"] == 3
    thrice = compare.pairwise({"a": a[:1] * 3, "b": b[:1] * 3})
    once = compare.pairwise({"a": a[:1], "b": b[:1]})
    same = ["difference", "p_weights"]  # copies tell nothing new of the videos
    pd.testing.assert_frame_equal(once[same], thrice[same])
    assert set(once["recipe"]) == {"one seed"}


def test_rsum_is_the_sum_of_what_every_video_adds():
    owner, rng = np.repeat(np.arange(13), 3), np.random.default_rng(0)
    one, two = (from_scores(rng.normal(size=(39, 13)), owner) for _ in range(2))
    for seed in (one, two):
        for metric in ("t2v R@1", "v2t R@10", "rsum"):
            credits, sizes, point = compare.credits(seed, metric)
            assert point * credits.sum() == pytest.approx(seed.metrics[metric])
            assert len(credits) == len(sizes) == 13
    test = compare.paired_test([one], [two], "rsum")
    assert test["difference"] == pytest.approx(one.metrics["rsum"] - two.metrics["rsum"])


def test_videos_of_one_family_are_one_cluster():
    owner, rng = np.repeat(np.arange(12), 2), np.random.default_rng(0)
    one = from_scores(rng.normal(size=(24, 12)), owner)
    joined = replace(one, family_of_video=np.arange(12) // 4)
    credits, sizes, _ = compare.credits(joined)
    assert sizes.tolist() == [8, 8, 8]
    found, alone = joined.ranks["t2v"] == 1, compare.credits(one)[0]
    assert credits.tolist() == found.reshape(3, 8).sum(1).tolist()
    assert credits.sum() == alone.sum()


def test_several_runs_may_count_as_one_seed():
    rng = np.random.default_rng(0)
    runs = [[ranked(rng.integers(1, 4, 12), seed) for seed in range(4)] for _ in range(2)]
    sides = [[side[:2], side[2:]] for side in runs]
    test = compare.paired_test(*sides)
    recalls = [np.mean([run.metrics["t2v R@1"] for run in side]) for side in runs]
    assert test["difference"] == pytest.approx(recalls[0] - recalls[1])
    assert test["seeds"] == 2


def test_recipes_are_compared_over_their_seeds():
    good, poor = ([ranked([rank] * n + [3] * (40 - n)) for n in (20, 22, 21)] for rank in (1, 2))
    table = compare.pairwise({"good": good, "poor": poor, "same": good}).set_index(
        ["metric", "a", "b"]
    )
    row = table.loc["t2v R@1", "good", "poor"]
    assert row.difference == pytest.approx(np.mean([50, 55, 52.5]))
    assert row.low < row.difference < row.high
    assert (row.recipe, row.weights) == ("better", "better")
    assert table.loc[("t2v R@1", "good", "same"), "recipe"] == "can't tell"
    for about in ("recipe", "weights"):
        p_values = table[f"p_{about}"]
        assert table[f"holm_{about}"].tolist() == pytest.approx(statistics.holm(p_values).tolist())


def test_a_table_over_seeds_has_mean_and_deviation():
    seeds = [ranked([1] * n + [3] * (40 - n)) for n in (20, 22, 24)]
    row = compare.over_seeds({"dmae": seeds}).loc["dmae", "t2v"]
    assert row["R@1"] == "55.0 ± 5.0"
    assert row["R@1 of each seed"] == "50.0  55.0  60.0"
    assert compare.over_seeds({"dmae": seeds[:1]}).loc[("dmae", "t2v"), "R@1"] == "50.0"


def test_agreement_is_counted_query_by_query():
    runs = {"a": ranked([1, 1, 2, 4]), "b": ranked([1, 3, 4, 1], 1)}
    assert compare.agreement(runs).loc["a", "b"] == 50
    assert (np.diag(compare.agreement(runs)) == 100).all()
    assert compare.agreement(runs, k=3).loc["b", "a"] == 50


def test_verdicts_between_runs():
    rng = np.random.default_rng(1)
    base = np.where(np.arange(500) < 225, 1, rng.integers(2, 60, 500))
    point, ten = base.copy(), base.copy()
    point[[*range(10), *range(225, 240)]] = [2] * 10 + [1] * 15
    ten[[*range(20), *range(225, 295)]] = [2] * 20 + [1] * 70
    runs = {"base": [ranked(base)], "one point": [ranked(point, 1)], "ten points": [ranked(ten, 2)]}
    table = compare.pairwise(runs, metrics=["t2v R@1"]).set_index(["a", "b"])
    assert table.loc[("base", "one point"), ["weights", "effect"]].tolist() == ["can't tell", -5]
    assert table.loc[("base", "ten points"), ["weights", "effect"]].tolist() == ["worse", -50]
    assert table.loc[("one point", "ten points"), "weights"] == "worse"
    assert (table["holm_weights"] >= table["p_weights"]).all()
    assert (table["low"] <= table["difference"]).all()
    assert (table["difference"] <= table["high"]).all()


CARD = {"protocol": "msrvtt/1k-A", "partial": False, "mismatches": []}


@pytest.fixture(scope="module")
def ours():
    return {"mine": ("ViT-B/32", from_scores(np.eye(6), range(6), postprocess=["dsl"]))}


def test_only_rows_of_the_same_protocol_and_language(ours):
    table = compare.beside_published(ours, CARD, "en")
    theirs = table[~table.trust.str.startswith("ours")]
    raw = pd.read_csv(files.PACKAGE.parent / "data" / compare.PUBLISHED, keep_default_na=False)
    expected = raw[
        (raw.dataset == "msrvtt") & (raw.protocol == "msrvtt/1k-A") & (raw.language == "en")
    ]
    assert len(theirs) == len(expected) > 20
    assert sorted(theirs["R@1"]) == sorted(expected["R@1"].astype(float))
    assert not theirs.method.str.startswith("HMMC").any()  # its source names no protocol
    assert set(theirs.trust) == {"seen", "second-hand"}


def test_ours_are_there_raw_and_post_processed_in_rows_of_their_own(ours):
    table = compare.beside_published(ours, CARD, "en").query("trust == 'ours'")
    assert table[["direction", "postprocess", "R@1"]].to_numpy().tolist() == [
        ["t2v", "raw", 100.0],
        ["t2v", "dsl", 100.0],
        ["v2t", "raw", 100.0],
        ["v2t", "dsl", 100.0],
    ]
    assert set(table.source) == {"this run"}


@pytest.mark.parametrize("broken", [{"partial": True}, {"mismatches": ["test: 999 videos"]}])
def test_ours_on_part_of_the_set_is_labelled(ours, broken):
    table = compare.beside_published(ours, CARD | broken, "en")
    assert set(table.trust) == {"seen", "second-hand", "ours, not comparable"}
    backbone, whole = ours["mine"]
    missing = replace(whole, metrics=whole.metrics | {"complete": False})
    table = compare.beside_published({"mine": (backbone, missing)}, CARD, "en")
    assert "ours" not in set(table.trust)


@pytest.mark.parametrize(
    ("protocol", "language"),
    [("shapes", "en"), ("msrvtt/full", "en"), ("msrvtt/1k-A", "zh"), ("", "en")],
)
def test_nothing_stands_beside_ours_where_nothing_is_published(ours, protocol, language):
    if protocol == "":  # there are such rows, and they are nobody's
        assert (compare.published_results().query("language == @language").protocol == "").any()
    assert len(compare.beside_published(ours, CARD | {"protocol": protocol}, language)) == 0


def test_no_file_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    assert len(compare.published_results()) > 50  # the checkout's
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "tvrkit")
    with pytest.raises(FileNotFoundError, match=r"no published_results\.csv in data/"):
        compare.published_results()


# --- data/published_results.csv: whole, plausible, and empty where nobody could read a cell ---


@pytest.fixture(scope="module")
def published():
    return pd.read_csv(ROOT / "data" / "published_results.csv", dtype=str, keep_default_na=False)


def test_columns_and_words(published):
    assert list(published.columns) == [*KEY[:8], *NUMBERS, "source", "trust", "recipes"]
    assert set(published["trust"]) == {"seen", "second-hand"}
    assert set(published["direction"]) == {"t2v", "v2t"}
    assert set(published["language"]) == {"en", "zh"}
    assert set(published["postprocess"]) <= {"raw", *POSTPROCESS}
    assert set(published["pretraining"]) == {"none", "CHVTT"}
    assert (published["source"] != "").all()
    assert not published.duplicated(KEY).any()


def test_data_sets_and_protocols_are_the_kits(published):
    assert set(published["dataset"]) <= set(DATASETS)
    stated = published[published["protocol"] != ""]
    # the READMEs of HMMC (18), InternVideo2 (12), LanguageBind (4) and T-MASS (3) name none
    assert len(stated) == len(published) - 37
    stated = stated[
        stated["protocol"] != "msrvtt/mteb-879"
    ]  # 879 of the clips: nobody's but mteb's
    for dataset, protocol in stated[["dataset", "protocol"]].drop_duplicates().to_numpy():
        assert protocol in protocols(dataset)


def test_numbers_are_possible(published):
    numbers = published[NUMBERS].apply(pd.to_numeric)
    recalls = numbers[["R@1", "R@5", "R@10"]]
    assert recalls["R@1"].notna().all()
    assert ((recalls > 0) & (recalls < 100) | recalls.isna()).all(axis=None)
    whole = recalls.dropna()
    assert (whole["R@1"] < whole["R@5"]).all()
    assert (whole["R@5"] < whole["R@10"]).all()
    assert (numbers[["MdR", "MnR"]].dropna() >= 1).all(axis=None)
    half = (numbers["R@1"] > 50) & numbers["MdR"].notna()
    assert (numbers.loc[half, "MdR"] == 1).all()  # more than half at rank 1 makes a median of 1


def test_cells_nobody_could_read_are_empty(published):
    dmae = published[published["method"] == "DMAE"]
    assert len(dmae) == 3
    assert (dmae["trust"] == "second-hand").all()
    assert set(dmae["dataset"]) == {"msrvtt"}
    assert (dmae[["MdR", "MnR"]] == "").all(axis=None)
    assert dmae[dmae["backbone"] == "ViT-B/32"][NUMBERS].to_numpy().tolist() == [
        ["46.9", "", "", "", ""]
    ]
    others = published[published["dataset"].isin(["msvd", "didemo", "lsmdc", "activitynet"])]
    assert (others["MdR"] == "").all()


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        (
            "method == 'GLSCL' and backbone == 'ViT-B/32' and postprocess == 'qbnorm'",
            "50.0/73.7/82.8/1.5/14.2",
        ),
        (
            "method == 'GLSCL' and backbone == 'ViT-B/32' and dataset == 'lsmdc'",
            "23.4/42.4/49.8//56.2",
        ),
        (
            "method == 'HMMC' and language == 'zh' and pretraining == 'CHVTT'",
            "54.1/86.2/92.4/1/5.6",
        ),
        ("method == 'CLIP (zero-shot, mean pooling)'", "31.1/53.7/63.4/4/41.6"),
        ("method == 'DMAE' and backbone == 'ViT-B/16'", "49.9/75.8/85.5//"),
        ("backbone == 'PE-Core-B'", "47.6////"),
        ("backbone == 'Qwen3-VL-Embedding 8B'", "59.8////"),
    ],
)
def test_known_rows(published, query, numbers):
    found = published.query(f"direction == 't2v' and {query}")
    assert ["/".join(row) for row in found[NUMBERS].to_numpy()] == [numbers]


def test_every_number_is_in_the_list_it_was_taken_from(published):
    if not ORACLE.is_file():
        pytest.skip("the list of published numbers is not at hand: set TVRKIT_RESULTS to its path")
    text = ORACLE.read_text(encoding="utf-8")
    for row in published.itertuples(index=False):
        cells = [cell for cell in row[8:13] if cell]
        unread = "/".join([*cells[:3], "-", *cells[3:]])  # the list marks some of the empty cells
        assert "/".join(cells) in text or unread in text, row
