"""Sentences of a run: made from its folder, and those of the repository are the committed run's."""

import re
from pathlib import Path

import nbformat
import pytest

from tests.fakes import finished_run
from tvrkit import files
from tvrkit.evaluation import compare
from tvrkit.inspection import diagnostics
from tvrkit.reporting import sentences, sweeps

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", ROOT / "reports" / "README.md"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path):
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return nbformat.read(path, as_version=4).cells[0].source


@pytest.mark.parametrize("path", [*TEXTS, *NOTEBOOKS], ids=lambda path: path.stem)
def test_what_the_repository_says_is_what_the_committed_run_says(path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(ROOT))
    assert sentences.filled(read(path)) == read(path)


def test_every_block_stands_somewhere():
    said = {name for path in [*TEXTS, *NOTEBOOKS] for _, name in MARKS(read(path))}
    assert said == {*sentences.BLOCKS}


def MARKS(text):
    return re.findall(r"(<!-- reference: (\w+) -->)", text)


@pytest.fixture
def methods(home):
    """Three methods and the backbone alone; the first is far ahead."""
    for recipe, skill in (("glscl_shapes", 4), ("hmmc_shapes", 2), ("clip4clip_shapes", 2)):
        for seed in (0, 1, 2):
            finished_run(recipe, seed=seed, skill=skill, ceiling=90)
    finished_run("clip4clip_meanp_shapes", skill=1, ceiling=90, card={"selection": "zero-shot"})


def test_what_a_notebook_measured_is_read_beside_its_run(home):
    """Of a recipe given by its path, too, whose name is another."""
    done = finished_run("my_method")
    numbers = diagnostics.Diagnostics({"frame AUC": (0.75, 0.7, 0.8)})
    numbers.save(done.folder / "diagnostics_05.json")
    assert sentences.attention(done)[0].endswith("frame AUC 0.750 [0.700, 0.800].")
    assert sentences.mining(done)[0] == "my_method: not measured."


def test_results_stand_between_chance_and_ceiling(methods):
    rows = [line for line in sentences.results("mine").splitlines() if line.startswith("|")]
    names = [line.split("|")[1].strip() for line in rows[2:]]
    assert names[0] == "GLSCL"
    assert sorted(names[1:3]) == ["CLIP4Clip", "HMMC"]
    assert names[3:] == [
        "backbone alone, not trained on videos",
        "chance",
        "ceiling: a perfect reader, who guesses where several fit",
    ]
    assert rows[-2].split("|")[2].strip() == "2.5"  # 1 of 40
    assert rows[-1].split("|")[2].strip() == "90.0"


def test_who_wins_is_what_the_tests_say_and_about_what(methods):
    pairs = compare.pairwise(sentences.trained("mine"))
    (told,) = (t for t in sentences.results("mine").splitlines() if t.startswith("Of the recipes"))
    about = {"recipe": told.split("Of these")[0], "weights": told.split("Of these")[1]}
    for name, text in about.items():
        for row in pairs.itertuples():
            better, other = (row.a, row.b)[:: 1 if row.difference > 0 else -1]
            win = f"{sentences.title(better)} above {sentences.title(other)} ("
            (found,) = re.findall(re.escape(win) + r"(.*?)\)", text) or [""]
            assert (f"{row.metric} by" in found) == (getattr(row, name) in ("better", "worse"))
    assert "GLSCL above HMMC" in about["recipe"]
    assert "3 seeds, all 9 comparisons" in about["recipe"]


def test_one_seed_says_nothing_of_the_recipe(home):
    for recipe, skill in (("glscl_shapes", 4), ("hmmc_shapes", 1)):
        finished_run(recipe, skill=skill)
    told = " ".join(sentences.evaluation("mine"))
    assert "Of the recipes (one seed: not known" in told
    assert "no two can be told apart. Of these weights alone: GLSCL above HMMC" in told
    assert "was not recorded" in told


def test_what_was_not_run_is_named(methods, monkeypatch):
    assert "was not run" in sentences.control("mine")
    told = sentences.absent("mine")
    assert all(f"`{name}`" in told for name in sweeps.load_all())
    assert "pre-training (notebook 07)" in told
    whole = {name: dict.fromkeys(sweep.overrides) for name, sweep in sweeps.load_all().items()}
    whole["time"].pop("meanP")
    monkeypatch.setattr(sweeps, "finished", lambda name, run: whole[name])
    (files.run("mine") / "pretraining").mkdir()
    assert sentences.absent("mine") == "Not in this run, or not whole: `time`."


def test_only_what_stands_between_marks_is_made_anew(methods):
    text = "before\n<!-- reference: evaluation -->\nold\n<!-- end -->\nafter"
    made = sentences.filled(text, "mine")
    assert made.startswith("before\n<!-- reference: evaluation -->\n")
    assert made.endswith("<!-- end -->\nafter")
    assert "old" not in made
    assert made.count("\n- ") == 3
    assert sentences.filled(made, "mine") == made


def test_a_run_without_sweeps_has_no_variants(methods):
    *_, last = sentences.ablations("mine")
    assert last.startswith(
        "Of 0 variants 0 differ from their reference as recipes, 0 as the weights"
    )
