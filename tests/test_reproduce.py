"""Headless reproduction: order, skipping, failures that are kept and named."""

import os

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tvrkit import paths, report, reproduce
from tvrkit.config import load_profile

PARAMETERS = "recipe = None\nprofile = None\nrun = None\nseed = 0\ndevice = None"
TASKS = ("01_data_preparation", "02_training", "03_evaluation")


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """Three notebooks that only print what they were asked to do."""
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    for name in TASKS:
        write(tmp_path, name, f"print('{name}', recipe, profile, run, seed, device)")
    root = paths.run("mine")

    def plan(profile, run):
        return [
            reproduce.Task("01_data_preparation", root, "a", 0),
            reproduce.Task("02_training", root / "a" / "seed0", "a", 0),
            reproduce.Task("03_evaluation", root, "a", 0),
        ]

    monkeypatch.setattr(reproduce, "plan", plan)
    monkeypatch.setattr(report, "write_index", lambda run: None)
    monkeypatch.setattr(report, "write_leaderboard", lambda: None)
    ran = []
    execute = reproduce.execute
    monkeypatch.setattr(reproduce, "execute", lambda task, p: (ran.append(task.notebook), execute(task, p)))
    return tmp_path, root, ran


def write(home, name, source, parameters=PARAMETERS):
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(source)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), home / "notebooks" / f"{name}.ipynb")


def output(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.get("text", "") for cell in cells if cell.cell_type == "code" for out in cell.outputs)


def test_notebooks_run_with_their_parameters_then_are_skipped_then_repeated(kit):
    home, root, ran = kit
    reproduce.reproduce("smoke", "mine")
    assert ran == list(TASKS)
    result = root / "a" / "seed0" / "02_training.ipynb"
    assert output(result) == "02_training a smoke mine 0 cpu\n"
    assert "02_training a smoke mine 0 cpu" in result.with_suffix(".html").read_text(encoding="utf-8")
    assert str(home) not in result.read_text(encoding="utf-8")
    assert not list(root.rglob("*.partial.*"))
    ran.clear()
    reproduce.reproduce("smoke", "mine")
    assert ran == []
    write(home, "02_training", "print('changed')")
    reproduce.reproduce("smoke", "mine")
    assert ran == ["02_training", "03_evaluation"]  # 03 looks into what 02 makes
    ran.clear()
    reproduce.reproduce("smoke", "mine", force=True)
    assert ran == list(TASKS)


def test_what_was_trained_again_makes_older_comparisons_outdated(kit):
    """Training that was repeated, then interrupted before the comparison, is not forgotten."""
    _, root, ran = kit
    reproduce.reproduce("smoke", "mine")
    ran.clear()
    result = root / "a" / "seed0" / "02_training.ipynb"
    later = result.stat().st_mtime + 60
    os.utime(result, (later, later))
    reproduce.reproduce("smoke", "mine")
    assert ran == ["03_evaluation"]


def test_force_refuses_a_name_that_is_no_run(kit):
    home, _, _ = kit
    with pytest.raises(ValueError, match="run name"):
        reproduce.reproduce("smoke", "..", force=True)
    assert (home / "notebooks").exists()


def test_a_failed_notebook_is_kept_and_the_cell_is_named(kit):
    home, root, ran = kit
    write(home, "02_training", "print('before')\n1 / 0")
    with pytest.raises(
        reproduce.NotebookFailed, match=r"02_training .* failed in cell \d+ .*ZeroDivisionError: division"
    ):
        reproduce.reproduce("smoke", "mine")
    folder = root / "a" / "seed0"
    assert "before" in output(folder / "02_training.failed.ipynb")
    assert not (folder / "02_training.ipynb").exists()
    write(home, "02_training", "print('mended')")
    ran.clear()
    reproduce.reproduce("smoke", "mine")
    assert ran == ["02_training", "03_evaluation"]
    assert not (folder / "02_training.failed.ipynb").exists()


def test_a_notebook_without_a_parameter_is_refused(kit):
    home, _, _ = kit
    write(home, "01_data_preparation", "pass", parameters="recipe = None")
    with pytest.raises(ValueError, match=r"01_data_preparation\.ipynb has no parameter device, profile, run, seed"):
        reproduce.reproduce("smoke", "mine")


def test_progress_bars_do_not_stay_in_the_result(kit):
    home, root, _ = kit
    write(home, "01_data_preparation", "import sys\nprint('bar', file=sys.stderr)\nprint('kept')")
    reproduce.reproduce("smoke", "mine")
    assert output(root / "01_data_preparation.ipynb") == "kept\n"


@pytest.mark.parametrize("profile", ["smoke", "quick", "full"])
def test_the_plan_trains_everything_before_it_compares(profile):
    settings = load_profile(profile)
    tasks = reproduce.plan(profile, "any")
    names = [task.notebook for task in tasks]
    trained = {(task.recipe, task.seed) for task in tasks if task.notebook == "02_training"}
    assert names == sorted(names[: -2 * len(settings.inspect)]) + names[-2 * len(settings.inspect) :]
    assert trained == {(recipe, seed) for recipe in settings.recipes for seed in settings.seeds}
    assert len({task.result for task in tasks}) == len(tasks)
