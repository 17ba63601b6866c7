"""`tvrkit reproduce`: the numbered notebooks, headless, into one run folder."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from rich.console import Console
from traitlets.config import Config

from tvrkit import files
from tvrkit.data.manifest import Manifest
from tvrkit.recipes import load_profile, load_recipe, to_dict
from tvrkit.reporting import pages, targets
from tvrkit.reporting.notebook_html import notebook_html
from tvrkit.shapes.dataset import PREFIX
from tvrkit.training.card import resolve_device

console = Console()
DATA, TRAINING, ATTENTION = "01_data_preparation", "02_training", "05_attention_maps"
ABLATIONS = "06_ablations"
TRAINED_INSIDE = {
    "07_pretraining": ["hmmc_pretrain_shapes", "hmmc_pretrain_shapes_zh", "hmmc_shapes_zh"]
}
PARAMETERS = ("recipe", "profile", "overrides", "run", "seed", "device")
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class NotebookRun:
    """One execution of one notebook; its result is `folder/notebook.ipynb`."""

    notebook: str
    folder: Path
    recipe: str
    seed: int
    profile: str
    run: str
    device: str = "cpu"
    overrides: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, Any]:
        """What the notebook's parameters cell gets."""
        return {name: getattr(self, name) for name in PARAMETERS}

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


def plan(
    profile: str, run: str, device: str = "cpu", overrides: Sequence[str] = ()
) -> list[NotebookRun]:
    """The notebooks of a profile, in the order in which one needs the other's results."""
    settings, tasks = load_profile(profile), []
    first, baseline = settings.seeds[0], settings.recipes[0]
    trained = [(recipe, seed) for seed in settings.seeds for recipe in settings.recipes]
    inspected = [(recipe, first) for recipe in settings.inspect]
    repeated = {TRAINING: trained, "04_hard_negatives": inspected, ATTENTION: inspected}
    for notebook in settings.notebooks:
        for recipe, seed in repeated.get(notebook, [(baseline, first)]):
            part = f"{run}/{recipe}/seed{seed}" if notebook in repeated else run
            arguments = recipe, seed, profile, run, device, [*overrides]
            tasks.append(NotebookRun(notebook, files.run(part), *arguments))
    return tasks


def needed(task: NotebookRun) -> list[str]:
    """The recipes whose runs the task's notebook reads: attention reads the baseline too,
    comparisons all."""
    if task.notebook in (DATA, TRAINING):
        return [task.recipe]
    recipes = load_profile(task.profile).recipes
    return [recipes[0], task.recipe] if task.notebook == ATTENTION else recipes


def due(tasks: Sequence[NotebookRun]) -> list[NotebookRun]:
    """Those that would be executed now: what is not finished, and what reads a recipe that is to be
    trained. Nothing is run."""
    todo: list[NotebookRun] = []
    for task in tasks:
        trained = {other.recipe for other in todo if other.notebook == TRAINING}
        if not finished(task) or (task.notebook > TRAINING and trained & {*needed(task)}):
            todo.append(task)
    return todo


def reproduce(
    profile: str, run: str, device: str = "cpu", force: bool = False, overrides: Sequence[str] = ()
) -> Path:
    """Run a profile's notebooks into reports/<run>/; what is finished is skipped.

    Args:
        profile: key of `recipes/profiles.yaml`.
        run: folder under reports/.
        device: "cpu", "cuda" or "cuda:k".
        force: remove what the run has and start again.
        overrides: "section.key=value" strings, over every recipe of the profile.

    Returns:
        The run's index.html.

    Raises:
        FileNotFoundError: a data set is not prepared.
        ValueError: no such device.
        NotebookFailed: a cell raised. What ran before it is kept, and skipped when run again.
        OSError: the run is being reproduced by another process; or, with `force`, a part of it
            is being trained.
    """
    resolve_device(device)  # refused here, not by the second notebook
    tasks, root = plan(profile, run, device, overrides), files.run(run)
    if absent := sorted({task.source.name for task in tasks if not task.source.exists()}):
        raise FileNotFoundError(f"no {', '.join(absent)} in {files.notebooks()}")
    for name in sorted({load_recipe(t.recipe, overrides, profile).data.prepared for t in tasks}):
        if not name.startswith(PREFIX):  # shapes makes itself
            Manifest.open(files.data(name))
    lock = files.home() / "reports" / f".{run.replace('/', '.')}.lock"
    lock.parent.mkdir(exist_ok=True)
    wait = "wait until it has ended, or choose another --run"
    with files.alone(lock, f"reports/{run} is being made by another `tvrkit reproduce`: {wait}"):
        if force and root.exists():
            for held in root.rglob(".lock"):
                trained = f"{held.parent.relative_to(root)} of it is being trained"
                with files.alone(held, f"{trained}: {wait}"):
                    pass
            shutil.rmtree(root)
        todo = due(tasks)
        for place, task in enumerate(tasks, 1):
            label = f"[{place}/{len(tasks)}] {task}"
            console.print(label if task in todo else f"{label}: done before", highlight=False)
            if task in todo:
                execute(task)
        pages.write_index(run)
        pages.write_leaderboard()
    console.print(*targets.sentences(run), sep="\n", soft_wrap=True, highlight=False, markup=False)
    return root / "index.html"


def finished(task: NotebookRun) -> bool:
    """Whether its result is there, and its origin is what it was then."""
    if not task.result.exists():
        return False
    return nbformat.read(task.result, as_version=4).metadata.get("tvrkit", {}) == origin(task)


def origin(task: NotebookRun) -> dict:
    """What the result depends on, as it is now: the notebook, the recipes, and the runs that it
    reads."""
    names, root = needed(task), files.run(task.run)
    recipes, given = names + TRAINED_INSIDE.get(task.notebook, []), (task.overrides, task.profile)
    sources = [task.source, *files.notebooks().glob("*.py")]
    sources += [files.RECIPES / "sweeps.yaml"] * (task.notebook == ABLATIONS)
    read = [f"{name}/seed*" for name in names] if task.notebook > TRAINING else []
    read += ["ablations/**"] * (task.notebook == ABLATIONS)
    cards = [card for folder in read for card in sorted(root.glob(f"{folder}/run.json"))]
    return {
        "sha256": {file.name: files.sha256(file) for file in sources},
        "runs": {card.relative_to(root).as_posix(): files.sha256(card) for card in cards},
        "parameters": task.parameters,
        "recipes": {name: to_dict(load_recipe(name, *given)) for name in recipes},
    }


def execute(task: NotebookRun) -> None:
    """Run one notebook with papermill and write it, and its HTML, only if every cell ran.

    Raises:
        NotebookFailed: a cell raised; the notebook so far is kept as `<name>.failed.ipynb`.
        ValueError: the notebook lacks one of the parameters (papermill would ignore it).
    """
    source = str(task.source)
    if unknown := sorted(set(PARAMETERS) - set(papermill.inspect_notebook(source))):
        raise ValueError(f"{task.source.name} has no parameter {', '.join(unknown)}")
    task.folder.mkdir(parents=True, exist_ok=True)
    partial = task.folder / f"{task.notebook}.partial.ipynb"
    failed = task.folder / f"{task.notebook}.failed.ipynb"
    failed.unlink(missing_ok=True)
    options = {"kernel_name": "python3", "cwd": str(task.source.parent), "stderr_file": sys.stderr}
    options["progress_bar"] = {"unit": "cell", "leave": False}
    try:
        with kernel_config() as config:
            options["config"] = config
            notebook = papermill.execute_notebook(source, partial, task.parameters, **options)
    except PapermillExecutionError as error:
        partial.replace(failed)
        where = f"{task} failed in cell {error.cell_index} (In [{error.exec_count}])"
        reason = f"{error.ename}: {error.evalue}"
        kept = f"the notebook so far is {os.path.relpath(failed)}"
        raise NotebookFailed(f"{where}: {reason}; {kept}") from None
    notebook.metadata["tvrkit"] = origin(task)
    relink(notebook, os.path.relpath(task.source.parents[1], task.folder))
    files.write_text(task.result, nbformat.writes(without_progress(notebook)))
    files.write_text(task.result.with_suffix(".html"), notebook_html(notebook, task.notebook))
    partial.unlink()


@contextmanager
def kernel_config() -> Iterator[Config]:
    """Settings with which a notebook's kernel talks through files of this user, not TCP ports."""
    with tempfile.TemporaryDirectory(prefix="tvrkit-") as folder:
        yield Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})


def relink(notebook: nbformat.NotebookNode, home: str) -> None:
    """Links and pictures of the prose that lead out of notebooks/ lead from its new place too."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../", f"]({home}/")


def without_progress(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook less the progress bars (stderr, widgets), and less papermill's record of local
    paths."""
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            kept = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.outputs = [output for output in kept if WIDGET not in output.get("data", {})]
    notebook.metadata.pop("papermill", None)
    return notebook
