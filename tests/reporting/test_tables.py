"""Tables of runs: numbers of metrics.json, intervals of pooled seeds, paired tests."""

import shutil

import numpy as np
import pandas as pd
import pytest

from tests.fakes import finished_run
from tvrkit.evaluation import compare
from tvrkit.reporting import tables
from tvrkit.training import runs


def test_one_seed_has_the_numbers_of_its_metrics(home):
    run = finished_run("alpha", skill=2)
    (row,) = tables.results([run])
    for way in ("t2v", "v2t"):
        assert {key: row[f"{way} {key}"] for key in compare.METRICS} == {
            k: run.metrics[f"{way} {k}"] for k in compare.METRICS
        }
        assert [row[f"{way} R@1 low"], row[f"{way} R@1 high"]] == [
            run.metrics[f"{way} R@1 {end}"] for end in ("low", "high")
        ]
        assert np.isnan(row[f"{way} R@1 sd"])
    assert (row["rsum"], row["seconds"], row["memory_mb"]) == (run.metrics["rsum"], 10.0, 900)


def test_several_seeds_are_averaged_and_their_interval_is_pooled(home):
    found = [finished_run("alpha", seed=seed, skill=2) for seed in range(3)]
    (row,) = tables.results(found)
    recalls = [run.metrics["t2v R@1"] for run in found]
    assert row["t2v R@1"] == pytest.approx(sum(recalls) / 3)
    assert row["t2v R@1 sd"] == pytest.approx(
        (sum((x - sum(recalls) / 3) ** 2 for x in recalls) / 2) ** 0.5
    )
    assert row["t2v R@1 low"] < row["t2v R@1"] < row["t2v R@1 high"]
    widths = [run.metrics["t2v R@1 high"] - run.metrics["t2v R@1 low"] for run in found]
    assert row["t2v R@1 high"] - row["t2v R@1 low"] < min(
        widths
    )  # independent seeds say more than one of them
    assert (row["seconds"], row["memory_mb"]) == (11.0, 902)


def test_a_seed_told_three_times_says_no_more_than_once(home):
    """Videos are resampled with all their seeds: copies of one result must not narrow the
    interval."""
    found = [finished_run("alpha", skill=2)]
    for seed in (1, 2):
        folder = found[0].folder.with_name(f"seed{seed}")
        shutil.copytree(found[0].folder, folder)
        found.append(runs.Run(folder))
    (row,) = tables.results(found)
    assert [row["v2t R@1 low"], row["v2t R@1 high"]] == [
        found[0].metrics[f"v2t R@1 {end}"] for end in ("low", "high")
    ]


def test_numbers_as_tables_show_them():
    assert tables.number(4476929, 0) == "4,476,929"
    assert (tables.number(34.42, 1, 0.91), tables.number(34.42)) == ("34.4 ± 0.9", "34.4")
    assert tables.interval(-0.26, 1.5, sign="+") == "[-0.3, +1.5]"
    test = pd.Series({"difference": 2.5, "low": -0.24, "high": 5.3})
    assert tables.difference(test) == "+2.5 [-0.2, +5.3]"


def test_verdicts_name_the_metrics_that_can_be_told():
    told = {"metric": ["t2v R@1", "v2t R@1", "rsum"], "recipe": ["can't tell", "better", "worse"]}
    tests = pd.DataFrame(told)
    assert tables.verdicts(tests, "recipe") == "v2t R@1 better, rsum worse"
    assert tables.verdicts(tests.assign(recipe="one seed"), "recipe") == "one seed"


def test_comparable_runs_share_seeds_and_protocol(home):
    first = finished_run("dmae", seed=0)
    finished_run("dmae", seed=1)
    for seed in (0, 1, 7):
        finished_run("glscl", seed=seed)
        finished_run("clip4clip", seed=seed, ties="optimistic")
    finished_run("hmmc", seed=0)  # a seed is missing
    same = tables.comparable("mine", first, [1, 0])
    assert {name: [run.seed for run in group] for name, group in same.items()} == {
        "dmae": [1, 0],
        "glscl": [1, 0],
    }
