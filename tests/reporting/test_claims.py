"""Claims of the papers: each is testable, and its verdict is the runs' own."""

import pytest

from tests.fakes import finished_run
from tvrkit.evaluation import compare, statistics
from tvrkit.recipes import recipe_names
from tvrkit.reporting import claims, sweeps, tables


def test_every_claim_names_runs_or_a_part_of_a_sweep_that_exist():
    loaded = claims.load()
    assert {claim.paper for claim in loaded} == {"DMAE", "GLSCL", "HMMC"}
    for claim in loaded:
        if claim.sweep:
            sweep = sweeps.load(claim.sweep)
            assert (claim.part in sweep.parts) != (claim.variant in sweep.overrides)
        else:
            assert {claim.runs.split("/")[-1], claim.against.split("/")[-1]} <= {*recipe_names()}


def test_verdicts_are_the_paired_tests_of_the_runs(home):
    skills = {"dmae_shapes": 3, "glscl_shapes": 1, "clip4clip_shapes": 1}
    runs = {
        name: [finished_run(name, seed=seed, skill=skill) for seed in (0, 1)]
        for name, skill in skills.items()
    }
    table = claims.results("mine")
    tested = table[table["weights"].notna()]
    assert tested["tested_on"].unique().tolist() == ["shapes quick, 40 videos, 2 seeds"]
    expected = [
        compare.paired_test(runs[name], runs["clip4clip_shapes"], metric)
        for name in ("dmae_shapes", "glscl_shapes")
        for metric in compare.TESTED
    ]
    assert tested["difference"].tolist() == [each["difference"] for each in expected]
    adjusted = statistics.holm([each["p_weights"] for each in expected])  # over all that are shown
    assert tested["holm_weights"].tolist() == pytest.approx(adjusted.tolist())
    assert tested["weights"].tolist() == ["better"] * 3 + ["can't tell"] * 3
    said = claims.shown(table)["this run says"].tolist()
    first = expected[0]
    assert said[0].startswith(f"With it minus without: t2v R@1 {tables.difference(first)}, v2t")
    assert "About these weights: t2v R@1 better, v2t R@1 better, rsum better" in said[0]
    assert "About the recipe: " in said[0]
    assert said.count(claims.UNTESTED) == len(said) - 2


def test_runs_of_other_protocols_or_seeds_test_nothing(home):
    finished_run("dmae_shapes")
    finished_run("clip4clip_shapes", ties="optimistic")
    finished_run("clip4clip_shapes", seed=1)
    shown = claims.shown(claims.results("mine"))
    assert set(shown["this run says"]) == {claims.UNTESTED}
    assert shown["tested on"].iloc[0] == "dmae_shapes against clip4clip_shapes"
    assert len(shown) == len(claims.load())
