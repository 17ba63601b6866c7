"""Ours beside what was printed: which side of the interval, and what keeps them apart."""

import re

import pytest
import yaml

from tests.fakes import DATA, finished_run
from tvrkit import files
from tvrkit.evaluation.compare import published_results
from tvrkit.recipes import load_recipe, recipe_names, to_dict
from tvrkit.reporting import pages, targets
from tvrkit.training.card import write_card

ON = {"data": {"protocol": "msrvtt/1k-A", "made_from": None}}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (45.0, "reached: the target is inside our interval"),
        (44.0, "reached: the target is inside our interval"),
        (46.1, "ours is below: the target is above our interval"),
        (43.9, "ours is above: the target is below our interval"),
    ],
)
def test_which_side_of_the_interval(target, said):
    assert targets.verdict(44.0, 46.0, target) == said


@pytest.mark.parametrize(
    ("skill", "side"), [(0.1, "ours is below"), (9.0, "ours is above"), (2.1, "reached")]
)
def test_a_recipe_stands_beside_its_own_target_in_words(skill, side):
    run = finished_run("glscl_msrvtt", skill=skill, **ON)
    finished_run("glscl_shapes", skill=skill)
    first, second = targets.sentences("mine")
    low, high = run.metrics["t2v R@1 low"], run.metrics["t2v R@1 high"]
    ours = f"glscl_msrvtt, t2v R@1: {run.metrics['t2v R@1']:.1f} [{low:.1f}, {high:.1f}], "
    assert first.startswith(
        ours + "published 48.1, GLSCL, arXiv 2405.12710, Tables I and II (seen)"
    )
    assert f": {side}" in first
    assert "v2t R@1" in second
    assert "NOT COMPARABLE" not in first + second
    page = pages.write_index("mine").read_text()
    assert "Published targets" in page
    assert f"<td>{run.metrics['t2v R@1']:.1f} [{low:.1f}, {high:.1f}]</td>" in page


def test_seeds_count_together_and_what_keeps_a_number_apart_is_said():
    partial = {**ON["data"], "partial": True}
    for seed in (0, 1):
        finished_run("hmmc_msrvtt", seed=seed, data=partial, missing=["v1"])
    line = targets.sentences("mine")[0]
    assert " ± " in line
    for doubt in ("prepared with --allow-partial", "1 videos missing", "its protocol: not named"):
        assert doubt in line


def test_another_protocol_is_said():
    finished_run("clip4clip_msrvtt", data={**ON["data"], "protocol": "msrvtt/full"})
    line = targets.sentences("mine")[0]
    assert line.endswith("its protocol: msrvtt/1k-A en, ours: msrvtt/full")


def test_weights_that_nobody_trained_and_settings_of_another_recipe_are_said():
    run = finished_run("zeroshot_msrvtt_b32", card={"selection": "untrained"}, **ON)
    own = to_dict(load_recipe("zeroshot_msrvtt_b32", ["backbone.name=RN50"]))
    (run.folder / "config.yaml").write_text(yaml.safe_dump(own))
    write_card(run.folder, run.card)
    for line in targets.sentences("mine"):
        assert line.endswith("; ours: untrained weights; not the recipe's: backbone.name")


def test_nothing_is_said_where_nothing_is_published():
    finished_run("glscl_shapes")
    assert targets.sentences("mine") == []
    assert "Published targets" not in pages.write_index("mine").read_text()
    assert targets.sentences("none") == []
    assert DATA["protocol"] == "shapes"


def test_a_recipes_header_has_the_numbers_that_the_table_compares_with():
    known = published_results()
    named = {name for row in known["recipes"] for name in row.split()}
    assert named <= set(recipe_names())
    for recipe in recipe_names():
        text = (files.RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8")
        header = text.partition("data:")[0]
        rows = known[[recipe in row.split() for row in known["recipes"]]]
        for row in rows.to_dict("records"):
            found = re.search(rf"{row['direction']} (?:R@1 )?(\d+\.\d)", header)
            assert found, (recipe, row)
            assert float(found[1]) == row["R@1"], (recipe, row)
        if re.search(r"Target[^.]*?:\s*(#\s*)?t2v (R@1 )?\d", header):
            assert len(rows), f"{recipe} names a target that no row has"
