"""`tvrkit reproduce`: the numbered notebooks, headless, into one run folder."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from rich.console import Console

from tvrkit import files
from tvrkit.recipes import load_profile, load_recipe, to_dict
from tvrkit.reporting import pages as report
from tvrkit.settings import Profile

console = Console()
DATA, TRAINING, ATTENTION = "01_data_preparation", "02_training", "05_attention_maps"
ABLATIONS = "06_ablations"
TRAINED_INSIDE = {
    "07_pretraining": ["hmmc_pretrain_shapes", "hmmc_pretrain_shapes_zh", "hmmc_shapes_zh"]
}
INSPECTIONS = ("04_hard_negatives", ATTENTION)
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Task:
    """One execution of one notebook; its result is `folder/notebook.ipynb`."""

    notebook: str
    folder: Path
    recipe: str
    seed: int

    @property
    def source(self) -> Path:
        """The numbered notebook."""
        return files.notebooks() / f"{self.notebook}.ipynb"

    @property
    def result(self) -> Path:
        """The executed one; there only if every cell ran."""
        return self.folder / f"{self.notebook}.ipynb"

    def __str__(self) -> str:
        return f"{self.notebook} ({self.recipe}, seed {self.seed})"


class NotebookFailed(RuntimeError):
    """A cell raised; the message names notebook, cell, error and where the notebook is kept."""


def plan(profile: str, run: str) -> list[Task]:
    """The notebooks of a profile, in the order in which one needs the other's results."""
    settings, root = load_profile(profile), files.run(run)

    def of(notebook: str, recipe: str, seed: int) -> Task:
        return Task(notebook, root / recipe / f"seed{seed}", recipe, seed)

    tasks, seed = [], settings.seeds[0]
    for notebook in settings.notebooks:
        if notebook == TRAINING:
            tasks += [
                of(notebook, recipe, each) for each in settings.seeds for recipe in settings.recipes
            ]
        elif notebook in INSPECTIONS:
            tasks += [of(notebook, recipe, seed) for recipe in settings.inspect]
        else:
            tasks.append(Task(notebook, root, settings.recipes[0], seed))
    return tasks


def needed(task: Task, profile: Profile) -> list[str]:
    """The recipes whose runs the task's notebook reads: attention reads the baseline too,
    comparisons all."""
    if task.notebook in (DATA, TRAINING):
        return [task.recipe]
    return [profile.recipes[0], task.recipe] if task.notebook == ATTENTION else profile.recipes


def reproduce(profile: str, run: str, device: str = "cpu", force: bool = False) -> Path:
    """Run a profile's notebooks into reports/<run>/; what is finished is skipped.

    Args:
        profile: key of `recipes/profiles.yaml`.
        run: folder under reports/.
        device: "cpu", "cuda" or "cuda:k".
        force: remove what the run has and start again.

    Returns:
        The run's index.html.

    Raises:
        NotebookFailed: a cell raised. What ran before it is kept, and skipped when run again.
    """
    tasks = plan(profile, run)
    absent = sorted({task.source.name for task in tasks if not task.source.exists()})
    if absent:
        raise FileNotFoundError(f"no {', '.join(absent)} in {files.notebooks()}")
    if force and files.run(run).exists():
        shutil.rmtree(files.run(run))
    for number, task in enumerate(tasks, 1):
        parameters = {
            "recipe": task.recipe,
            "profile": profile,
            "run": run,
            "seed": task.seed,
            "device": device,
        }
        label = f"[{number}/{len(tasks)}] {task}"
        if finished(task, parameters) and not outdated(task, tasks, load_profile(profile)):
            console.print(f"{label}: done before", highlight=False)
            continue
        console.print(label, highlight=False)
        execute(task, parameters)
    report.write_index(run)
    report.write_leaderboard()
    return files.run(run) / "index.html"


def finished(task: Task, parameters: dict) -> bool:
    """Whether the task's result is there, with these parameters and from the notebook as it is
    now."""
    if not task.result.exists():
        return False
    made_from = nbformat.read(task.result, as_version=4).metadata.get("tvrkit", {})
    return made_from == _made_from(task, parameters)


def outdated(task: Task, tasks: list[Task], profile: Profile) -> bool:
    """Whether a recipe was trained after the task's notebook compared, or looked into, what it had
    given."""
    read = needed(task, profile)
    trained = [each.result for each in tasks if each.notebook == TRAINING and each.recipe in read]
    if task.notebook == ABLATIONS:
        trained += (task.folder / "ablations").rglob("run.json")
    looked = task.result.stat().st_mtime
    return task.notebook > TRAINING and any(
        result.exists() and result.stat().st_mtime > looked for result in trained
    )


def _made_from(task: Task, parameters: dict) -> dict:
    profile = parameters["profile"]
    names = needed(task, load_profile(profile)) + TRAINED_INSIDE.get(task.notebook, [])
    recipes = {name: to_dict(load_recipe(name, profile=profile)) for name in names}
    sources = [task.source] + [files.RECIPES / "sweeps.yaml"] * (task.notebook == ABLATIONS)
    hashes = {file.name: files.sha256(file) for file in sources}
    return {"sha256": hashes, "parameters": parameters, "recipes": recipes}


def execute(task: Task, parameters: dict) -> None:
    """Run one notebook with papermill and write it, and its HTML, only if every cell ran.

    Raises:
        NotebookFailed: a cell raised; the notebook so far is kept as `<name>.failed.ipynb`.
        ValueError: the notebook lacks one of the parameters (papermill would ignore it).
    """
    unknown = set(parameters) - set(papermill.inspect_notebook(str(task.source)))
    if unknown:
        raise ValueError(
            f"{task.source.name} has no parameter {', '.join(sorted(unknown))} in its parameters cell"
        )
    task.folder.mkdir(parents=True, exist_ok=True)
    partial, failed = (
        task.folder / f"{task.notebook}.{kind}.ipynb" for kind in ("partial", "failed")
    )
    failed.unlink(missing_ok=True)
    try:
        notebook = papermill.execute_notebook(
            str(task.source),
            str(partial),
            parameters,
            kernel_name="python3",
            cwd=str(task.source.parent),
            progress_bar={"unit": "cell", "leave": False},
            stderr_file=sys.stderr,
        )
    except PapermillExecutionError as error:
        partial.replace(failed)
        kept = os.path.relpath(failed)
        raise NotebookFailed(
            f"{task} failed in cell {error.cell_index} (In [{error.exec_count}]): {error.ename}: {error.evalue}; "
            f"the notebook so far is {kept}"
        ) from None
    notebook.metadata["tvrkit"] = _made_from(task, parameters)
    files.write_text(task.result, nbformat.writes(without_progress(notebook)))
    files.write_text(
        task.result.with_suffix(".html"), HTMLExporter().from_notebook_node(notebook)[0]
    )
    partial.unlink()


def without_progress(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook less the progress bars (stderr, widgets), and less papermill's record of local
    paths."""
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            kept = [out for out in cell.outputs if out.get("name") != "stderr"]
            cell.outputs = [out for out in kept if WIDGET not in out.get("data", {})]
    notebook.metadata.pop("papermill", None)
    return notebook
