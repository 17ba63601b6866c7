"""Headless reproduction: order, skipping, failures that are kept and named; and a real data set's
profile from its files to the published targets."""

import shutil

import nbformat
import pytest
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.data.layouts import LAYOUTS, put_profile
from tests.data.video_files import write_video
from tvrkit import cli, files
from tvrkit.data.manifest import Manifest
from tvrkit.data.prepare import prepare
from tvrkit.recipes import load_profile, load_recipe
from tvrkit.reporting import notebooks, pages
from tvrkit.settings import Profile

pytestmark = pytest.mark.slow

PARAMETERS = "recipe = None\nprofile = None\noverrides = []\nrun = None\nseed = 0\ndevice = None"
RECIPE = "dmae_shapes"
TASKS = ("01_data_preparation", "02_training", "03_evaluation")


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """Three notebooks that only print what they were asked to do."""
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "reports").mkdir()
    for name in TASKS:
        write(tmp_path, name, f"print('{name}', recipe, profile, run, seed, device)")
    root = files.run("mine")

    def plan(profile, run, device="cpu", overrides=()):
        folders = (root, root / RECIPE / "seed0", root)
        return [
            notebooks.NotebookRun(name, folder, RECIPE, 0, profile, run, device, [*overrides])
            for name, folder in zip(TASKS, folders, strict=True)
        ]

    monkeypatch.setattr(notebooks, "plan", plan)
    monkeypatch.setattr(pages, "write_index", lambda run: None)
    monkeypatch.setattr(pages, "write_leaderboard", lambda: None)
    ran = []
    execute = notebooks.execute
    monkeypatch.setattr(
        notebooks, "execute", lambda task: (ran.append(task.notebook), execute(task))
    )
    return tmp_path, root, ran


def write(home, name, source, parameters=PARAMETERS):
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(source)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), home / "notebooks" / f"{name}.ipynb")


def output(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(
        out.get("text", "") for cell in cells if cell.cell_type == "code" for out in cell.outputs
    )


def test_notebooks_run_with_their_parameters_then_are_skipped_then_repeated(kit):
    home, root, ran = kit
    notebooks.reproduce("smoke", "mine")
    assert ran == list(TASKS)
    result = root / RECIPE / "seed0" / "02_training.ipynb"
    assert output(result) == f"02_training {RECIPE} smoke mine 0 cpu\n"
    assert f"02_training {RECIPE} smoke mine 0 cpu" in result.with_suffix(".html").read_text(
        encoding="utf-8"
    )
    assert str(home) not in result.read_text(encoding="utf-8")
    assert not list(root.rglob("*.partial.*"))
    ran.clear()
    notebooks.reproduce("smoke", "mine")
    assert ran == []
    write(home, "02_training", "print('changed')")
    notebooks.reproduce("smoke", "mine")
    assert ran == ["02_training", "03_evaluation"]  # 03 looks into what 02 makes
    ran.clear()
    notebooks.reproduce("smoke", "mine", force=True)
    assert ran == list(TASKS)


def test_what_was_trained_again_makes_older_comparisons_outdated(kit):
    """Training that was repeated, then interrupted before the comparison, is not forgotten."""
    _, root, ran = kit
    notebooks.reproduce("smoke", "mine")
    ran.clear()
    (root / RECIPE / "seed0" / "run.json").write_text("{}", encoding="utf-8")
    notebooks.reproduce("smoke", "mine")
    assert ran == ["03_evaluation"]


def test_a_finished_sweep_makes_the_ablations_outdated(kit):
    home, root, _ = kit
    task = notebooks.NotebookRun("06_ablations", root, RECIPE, 0, "reference", "mine")
    run = root / "ablations" / "sweep" / "variant" / RECIPE / "seed0" / "run.json"
    write(home, task.notebook, "pass")
    run.parent.mkdir(parents=True)
    run.write_text("{}", encoding="utf-8")
    made = new_notebook(metadata={"tvrkit": notebooks.origin(task)})
    nbformat.write(made, task.result)
    assert notebooks.finished(task)
    run.write_text('{"seed": 0}', encoding="utf-8")
    assert not notebooks.finished(task)


def test_a_dry_run_says_what_is_due_and_runs_nothing(kit):
    home, _, ran = kit
    tasks = notebooks.plan("smoke", "mine")

    def due():
        return [task.notebook for task in notebooks.due(tasks)]

    assert due() == list(TASKS)
    notebooks.reproduce("smoke", "mine")
    ran.clear()
    assert due() == []
    write(home, "02_training", "print('changed')")
    assert due() == ["02_training", "03_evaluation"]
    assert ran == []


def test_force_does_not_remove_what_is_being_trained(kit):
    _, root, ran = kit
    notebooks.reproduce("smoke", "mine")
    ran.clear()
    lock = root / RECIPE / "seed0" / ".lock"
    with FileLock(lock), pytest.raises(OSError, match=f"{RECIPE}/seed0 of it is being trained"):
        notebooks.reproduce("smoke", "mine", force=True)
    assert (root / RECIPE / "seed0" / "02_training.ipynb").exists()
    assert ran == []
    notebooks.reproduce("smoke", "mine", force=True)
    assert ran == list(TASKS)


def test_another_device_is_refused_before_anything_runs(kit):
    with pytest.raises(ValueError, match="unknown device 'tpu': expected cpu, cuda or cuda:k"):
        notebooks.reproduce("smoke", "mine", device="tpu")
    assert kit[2] == []


def test_a_run_is_reproduced_once_at_a_time(kit):
    home, _, ran = kit
    with FileLock(home / "reports" / ".mine.lock"):
        with pytest.raises(OSError, match="reports/mine is being made by another `tvrkit"):
            notebooks.reproduce("smoke", "mine")
        assert ran == []
        notebooks.reproduce("smoke", "other")
    assert ran == list(TASKS)


def test_the_kernel_says_nothing_about_its_transport(kit, capfd):
    notebooks.reproduce("smoke", "mine")
    assert "encryption" not in "".join(capfd.readouterr())


def test_force_refuses_a_name_that_is_no_run(kit):
    home, _, _ = kit
    with pytest.raises(ValueError, match="run name"):
        notebooks.reproduce("smoke", "..", force=True)
    assert (home / "notebooks").exists()


def test_a_failed_notebook_is_kept_and_the_cell_is_named(kit):
    home, root, ran = kit
    write(home, "02_training", "print('before')\n1 / 0")
    with pytest.raises(
        notebooks.NotebookFailed,
        match=r"02_training .* failed in cell \d+ .*ZeroDivisionError: division",
    ):
        notebooks.reproduce("smoke", "mine")
    folder = root / RECIPE / "seed0"
    assert "before" in output(folder / "02_training.failed.ipynb")
    assert not (folder / "02_training.ipynb").exists()
    write(home, "02_training", "print('mended')")
    ran.clear()
    notebooks.reproduce("smoke", "mine")
    assert ran == ["02_training", "03_evaluation"]
    assert not (folder / "02_training.failed.ipynb").exists()


def test_a_notebook_without_a_parameter_is_refused(kit):
    home, _, _ = kit
    write(home, "01_data_preparation", "pass", parameters="recipe = None")
    with pytest.raises(
        ValueError,
        match=r"01_data_preparation\.ipynb has no parameter device, overrides, profile, run",
    ):
        notebooks.reproduce("smoke", "mine")


def test_progress_bars_do_not_stay_in_the_result(kit):
    home, root, _ = kit
    write(home, "01_data_preparation", "import sys\nprint('bar', file=sys.stderr)\nprint('kept')")
    notebooks.reproduce("smoke", "mine")
    assert output(root / "01_data_preparation.ipynb") == "kept\n"


def test_links_out_of_the_notebooks_folder_lead_there_from_the_result_too():
    prose = new_markdown_cell("![a](../reports/a.png) and [b](03_evaluation.ipynb)")
    source = new_code_cell("'](../data)'")
    notebook = new_notebook(cells=[prose, source])
    notebooks.relink(notebook, "../../..")
    assert prose.source == "![a](../../../reports/a.png) and [b](03_evaluation.ipynb)"
    assert source.source == "'](../data)'"


@pytest.mark.parametrize("profile", ["smoke", "quick", "reference", "full", *LAYOUTS])
def test_the_plan_runs_each_notebook_for_what_it_is_about(profile):
    settings = load_profile(profile)
    tasks = notebooks.plan(profile, "any")
    names = [task.notebook for task in tasks]
    assert list(dict.fromkeys(names)) == settings.notebooks == sorted(settings.notebooks)
    assert names == sorted(names), "trained before it is compared"
    for notebook in settings.notebooks:
        of = [(task.recipe, task.seed) for task in tasks if task.notebook == notebook]
        if notebook == "02_training":
            assert of == [(recipe, seed) for seed in settings.seeds for recipe in settings.recipes]
        elif notebook in ("04_hard_negatives", "05_attention_maps"):
            assert of == [(recipe, settings.seeds[0]) for recipe in settings.inspect]
        else:
            assert of == [(settings.recipes[0], settings.seeds[0])]
    assert len({task.result for task in tasks}) == len(tasks)


def test_another_recipe_in_the_profile_repeats_only_what_reads_it(tmp_path, monkeypatch):
    """A method that joins is trained and compared; what looks into the others stays."""
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    monkeypatch.setattr(pages, "write_index", lambda run: None)
    monkeypatch.setattr(pages, "write_leaderboard", lambda: None)
    names = ["01_data_preparation", "02_training", "03_evaluation", "05_attention_maps"]
    (tmp_path / "notebooks").mkdir()
    for name in names:
        write(tmp_path, name, "pass")
    ran = []

    def execute(task):
        ran.append((task.notebook[:2], task.recipe))
        task.folder.mkdir(parents=True, exist_ok=True)
        made = new_notebook(metadata={"tvrkit": notebooks.origin(task)})
        nbformat.write(made, task.result)

    monkeypatch.setattr(notebooks, "execute", execute)

    def reproduce_with(*recipes):
        profile = Profile(names, list(recipes), ["dmae_shapes"], [0])
        monkeypatch.setattr(notebooks, "load_profile", lambda _: profile)
        ran.clear()
        notebooks.reproduce("smoke", "mine")
        return ran

    two = ["clip4clip_shapes", "dmae_shapes"]
    assert [name for name, _ in reproduce_with(*two)] == ["01", "02", "02", "03", "05"]
    assert reproduce_with(*two) == []
    assert reproduce_with(*two, "hmmc_shapes") == [
        ("02", "hmmc_shapes"),
        ("03", "clip4clip_shapes"),
    ]
    assert reproduce_with(*two) == [("03", "clip4clip_shapes")]
    assert reproduce_with("dmae_shapes")[1:] == [
        ("03", "dmae_shapes"),
        ("05", "dmae_shapes"),
    ]  # another baseline


def test_a_notebook_that_is_not_there_is_named(kit):
    home, _, ran = kit
    (home / "notebooks" / "03_evaluation.ipynb").unlink()
    with pytest.raises(FileNotFoundError, match=r"no 03_evaluation\.ipynb in "):
        notebooks.reproduce("smoke", "mine")
    assert ran == []


def test_overrides_reach_every_notebook_and_make_another_result(kit):
    home, root, ran = kit
    write(home, "02_training", "print(overrides)")
    notebooks.reproduce("smoke", "mine", overrides=["train.epochs=1"])
    assert output(root / RECIPE / "seed0" / "02_training.ipynb") == "['train.epochs=1']\n"
    ran.clear()
    notebooks.reproduce("smoke", "mine", overrides=["train.epochs=1"])
    assert ran == []
    with pytest.raises(ValueError, match=r"train\.epoch: .*known keys"):
        notebooks.reproduce("smoke", "mine", overrides=["train.epoch=1"])
    assert ran == []


# --- the profiles of real data sets ---


def prepared(home, profile, clips=(), frames=4):
    """A profile's data set in small under `home`/data: invented words, made videos or `clips`."""
    raw = home / "raw"
    (raw / "videos").mkdir(parents=True)
    name, ids = put_profile(raw, profile)
    made = write_video(home / "made.mp4", count=max(12, frames))
    for place, video in enumerate(video for row in ids.values() for video in row):
        file = clips[place % len(clips)] if clips else made
        shutil.copy(file, raw / "videos" / f"{video}{file.suffix}")
    root = files.data(load_recipe(load_profile(profile).recipes[0]).data.prepared)
    prepare(name, raw, raw / "videos", root, frames=frames, allow_partial=True, workers=1)
    return ids


@pytest.mark.parametrize("profile", LAYOUTS)
def test_a_profile_finds_the_data_that_its_layout_gives(profile, tmp_path, monkeypatch, capsys):
    """Every recipe reads what `tvrkit data prepare` made, in its language; what would run is
    listed."""
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    shutil.copytree(files.PACKAGE.parent / "notebooks", tmp_path / "notebooks")
    with pytest.raises(FileNotFoundError, match=r"no prepared data set at .*data/README.md for"):
        notebooks.reproduce(profile, profile)
    ids = prepared(tmp_path, profile)
    settings = load_profile(profile)
    for recipe in settings.recipes:
        data = load_recipe(recipe, profile=profile).data
        manifest = Manifest.open(files.data(data.prepared))
        for split in ids:
            found = manifest.split(split, data.language).video_ids
            assert len(found) == len(ids[split]), (recipe, split)
    monkeypatch.setattr("sys.argv", ["tvrkit", "reproduce", "--profile", profile, "--dry-run"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    listed = capsys.readouterr().out.splitlines()
    assert listed == [str(task) for task in notebooks.plan(profile, profile)]
    assert [line[:2] for line in listed if line[:2] != "02"][:2] == ["01", "03"]


def test_every_real_data_set_has_a_profile_of_recipes_with_public_weights():
    """Recipes that start from a run of CHVTT, which is not public, are left to the command line."""
    for profile in LAYOUTS:
        made = [load_recipe(name) for name in load_profile(profile).recipes]
        assert len({each.data.prepared for each in made}) == 1
        assert not any(each.train.start_from for each in made)
