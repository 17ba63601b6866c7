"""Sentences of a run: made from its folder, and those of the repository are the committed run's."""

import re
from functools import cache
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tests.fakes import finished_run
from tvrkit.evaluation import compare, statistics
from tvrkit.inspection import diagnostics
from tvrkit.reporting import sentences, sweeps, tables
from tvrkit.training import runs
from tvrkit.training.card import write_card

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", ROOT / "reports" / "README.md"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path):
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return nbformat.read(path, as_version=4).cells[0].source


@pytest.fixture(scope="module")
def kept():
    """`sentences.BLOCKS`, each made once of a run that stays as it is: it takes seconds."""
    return {name: cache(make) for name, make in sentences.BLOCKS.items()}


@pytest.fixture
def committed(kept, monkeypatch):
    """What is said of the committed run, by name."""
    monkeypatch.setenv("TVRKIT_HOME", str(ROOT))
    monkeypatch.setattr(sentences, "BLOCKS", kept)
    return lambda name: kept[name](sentences.REFERENCE)


@pytest.mark.parametrize("path", [*TEXTS, *NOTEBOOKS], ids=lambda path: path.stem)
def test_what_the_repository_says_is_what_the_committed_run_says(path, committed):
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


def test_accuracy_by_factor_is_of_the_contrast_set_where_it_was_scored(methods):
    given = {"selection": "as given"}
    recipes = tables.by_recipe(runs.find("mine"))
    apart = {}
    for name in recipes:
        assert sentences.on_families("mine", recipes) == recipes  # not all of them are there yet
        options = {"run": "mine/contrast", "card": given}
        apart[name] = [finished_run(name, seed=seed, **options) for seed in (0, 1, 2)]
    assert sentences.on_families("mine", recipes) == apart


def test_who_wins_is_what_the_tests_say_and_about_what(methods):
    pairs = compare.pairwise(tables.by_recipe(runs.find("mine")))
    (told,) = (
        t for t in sentences.results("mine").splitlines() if t.startswith("- Of the recipes")
    )
    about = {"recipe": told.split("Of these")[0], "weights": told.split("Of these")[1]}
    for name, text in about.items():
        for row in pairs.itertuples():
            better, other = (row.a, row.b)[:: 1 if row.difference > 0 else -1]
            win = f"{tables.title(better)} above {tables.title(other)} in {row.metric} ("
            assert (win in text) == (getattr(row, name) in ("better", "worse"))
    assert "GLSCL above HMMC" in about["recipe"]
    assert "3 seeds, all 9 comparisons" in about["recipe"]


def test_one_seed_says_nothing_of_the_recipe(home):
    for recipe, skill in (("glscl_shapes", 4), ("hmmc_shapes", 1)):
        finished_run(recipe, skill=skill)
    told = " ".join(sentences.evaluation("mine"))
    assert "Of the recipes (one seed: not known" in told
    assert "no two can be told apart. Of these weights alone: GLSCL above HMMC" in told
    assert "was not recorded" in told


def test_a_control_that_was_not_run_is_said_to_be_missing(methods):
    assert "was not run" in sentences.control("mine")


def test_verdicts_on_sweeps_are_adjusted_over_all_variants_that_the_sentence_counts(committed):
    *_, told = committed("ablations")
    rows = pd.concat([sweeps.tests(name, "reference") for name in sweeps.load_all()])
    adjusted = statistics.holm(rows["p_recipe"].dropna())
    sure = int((adjusted < statistics.ALPHA).sum())
    assert f"adjusted for all {len(rows)} comparisons" in told
    assert len(re.findall(r"[+-]\d+\.\d", told)) == sure
    assert sure < (rows["recipe"].isin(["better", "worse"])).sum()  # adjusted a sweep at a time


def test_what_is_said_of_released_code_is_the_test_of_its_runs(home):
    for name, place in (("dmae", "meanP/"), ("glscl", ""), ("hmmc", "")):
        for seed in (0, 1, 2):
            finished_run(f"{name}_shapes", run=f"mine/{place}".rstrip("/"), seed=seed, skill=4)
    assert sentences.released("mine") == ["DMAE: not run.", "GLSCL: not run.", "HMMC: not run."]
    for seed in (0, 1):
        finished_run("hmmc_shapes", run="mine/released", seed=seed, skill=1)
    hmmc, *others = sentences.released("mine")
    assert others == ["DMAE: not run.", "GLSCL: not run."]
    assert hmmc.startswith("HMMC, released minus corrected (seeds: 2): t2v R@1 -")
    assert "About these weights: t2v R@1 worse" in hmmc


def test_what_is_dead_in_every_seed_is_said_of_the_recipe(home):
    """What is alive in one seed is not said to be dead; nor what recorded no signs."""
    finished_run("hmmc_shapes")
    none = "Dead in every seed (signs: notebook 02). No watched part."
    assert sentences.block("dead", "mine") == none
    for seed, (words, frames) in enumerate(([0.3, 1.0], [0.3, 30.0])):
        run = finished_run("dmae_shapes", seed=seed)
        signs = {"words masked (%)": [40.0, words], "frames masked (%)": [0.0, frames]}
        pd.DataFrame({"epoch": [1, 2], **signs}).to_csv(run.folder / "curve.csv", index=False)
        write_card(run.folder, run.card)
    told = (
        "Dead in every seed (signs: notebook 02). DMAE: TPM-CL masks almost no word, or almost all."
    )
    assert sentences.block("dead", "mine") == told


def test_both_languages_of_the_pre_training_are_judged(committed):
    told = " ".join(committed("pretraining"))
    assert re.search(r"English: Dead: .* Chinese: Dead: ", told)


def test_wide_intervals_are_named_with_the_reason(committed, monkeypatch):
    told = committed("results")
    assert "Every interval is within 5 points to either side." in told
    assert "Dead in every seed (signs: notebook 02). " in told
    few = {"clip4clip_shapes": [*sweeps.finished("time", "reference")["meanP"].values()]}
    monkeypatch.setattr(sentences, "on_families", lambda run, recipes: few)
    told = sentences.results("reference")
    assert re.search(r"make an interval wide: .*colour2 \(\d+ families\), .*then \(", told)


def test_only_what_stands_between_marks_is_made_anew(methods):
    text = "before\n<!-- reference: evaluation -->\nold\n<!-- end -->\nafter"
    made = sentences.filled(text, "mine")
    assert made.startswith("before\n<!-- reference: evaluation -->\n")
    assert made.endswith("<!-- end -->\nafter")
    assert "old" not in made
    assert made.count("\n- ") == 3
    assert sentences.filled(made, "mine") == made


def test_a_run_without_sweeps_has_no_variants(methods):
    _, parts, last = sentences.ablations("mine")
    assert parts == "DMAE's parts: nothing to compare yet."
    assert last.startswith(
        "Of 0 variants of all sweeps, adjusted for all 0 comparisons, 0 differ from their reference"
    )
