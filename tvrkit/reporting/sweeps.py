"""Sweeps: variants of a recipe, trained with several seeds and compared with one of them, the
reference.

`recipes/sweeps.yaml` says which. The runs of a variant are in
reports/<run>/ablations/<sweep>/<variant>/. Variants of several sweeps with equal settings are one:
they share the folder of the first of them in the file.
"""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure
from tqdm import tqdm

from tvrkit import figures, files
from tvrkit.evaluation import compare, statistics
from tvrkit.recipes import build, load_profile, load_recipe, read_sections
from tvrkit.reporting import tables
from tvrkit.settings import Config, choose, parse, settings
from tvrkit.training import runs
from tvrkit.training.runs import Run

POLL = 0.1  # seconds between looks at processes that were told to end
COST = ["training, s", "memory, MB"]


@settings
class Sweep:
    """One question and the variants that answer it: named `variants`, combinations of `parts`, or
    the `values` of one `key`.

    Attributes:
        question: what the sweep asks.
        recipe: that all variants start from.
        reference: name of the variant that the others are compared with.
        common: overrides of every variant.
        key: the setting that is swept; a variant's name is its value.
        values: of `key`.
        variants: name -> overrides.
        parts: name -> overrides that take it out; a variant for each combination of parts, its name
            theirs joined by "-".
        seeds: of each variant.
    """

    question: str
    recipe: str
    reference: str
    common: list[str] = field(default_factory=list)
    key: str | None = None
    values: list[int | float] = field(default_factory=list)
    variants: dict[str, list[str]] = field(default_factory=dict)
    parts: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)

    @property
    def overrides(self) -> dict[str, list[str]]:
        """Name of each variant -> its overrides, without the common ones."""
        variants = self.variants | {str(value): [f"{self.key}={value}"] for value in self.values}
        for kept in itertools.product((True, False), repeat=len(self.parts)) if self.parts else ():
            taken = (out for out, there in zip(self.parts.values(), kept, strict=True) if not there)
            name = "-".join(itertools.compress(self.parts, kept)) or "none"
            variants[name] = [*itertools.chain(*taken)]
        return variants


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: `overrides` are the sweep's, the profile's and the variant's own, `run`
    as `runs` has it."""

    sweep: str
    variant: str
    seed: int
    recipe: str
    overrides: list[str]
    run: str

    def __str__(self) -> str:
        return f"{self.sweep}/{self.variant} seed {self.seed}"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return files.run(self.run) / self.recipe / f"seed{self.seed}"

    @property
    def config(self) -> Config:
        """The recipe with the overrides."""
        try:
            return load_recipe(self.recipe, self.overrides)
        except ValueError as error:
            raise ValueError(f"sweep {self.sweep}, variant {self.variant}: {error}") from None

    @property
    def finished(self) -> bool:
        """Whether the run is there with these settings; with others, `runs.ensure` refuses it by
        name."""
        card, settings = self.folder / "run.json", self.folder / "config.yaml"
        return card.exists() and build(read_sections(settings), self.recipe) == self.config


def load_all() -> dict[str, Sweep]:
    """Every sweep of the package by name.

    Raises:
        ValueError: an unknown key, a wrong type, or a reference that is none of the variants.
    """
    raw = yaml.safe_load((files.RECIPES / "sweeps.yaml").read_text(encoding="utf-8"))
    sweeps = {}
    for name, values in raw["sweeps"].items():
        common = [*raw["common"], *values.get("common", [])]
        whole = {"seeds": raw["seeds"], **values, "common": common}
        sweeps[name] = parse(Sweep, whole, f"sweep {name}")
        choose(f"reference of sweep {name}", sweeps[name].reference, sweeps[name].overrides)
    return sweeps


def load(name: str) -> Sweep:
    """One sweep by name."""
    sweeps = load_all()
    return sweeps[choose("sweep", name, sweeps)]


@cache
def homes() -> dict[tuple[str, str], str]:
    """(sweep, variant) -> "sweep/variant" of the first with equal settings."""
    firsts: dict[str, str] = {}
    folders = {}
    for name, sweep in load_all().items():
        for variant, overrides in sweep.overrides.items():
            about = variant, 0, sweep.recipe, [*sweep.common, *overrides], ""
            config = SweepRun(name, *about).config
            folders[name, variant] = firsts.setdefault(repr(config), f"{name}/{variant}")
    return folders


def variant_run(run: str, name: str, variant: str) -> str:
    """Where `runs` keeps a variant."""
    return f"{run}/ablations/{homes()[name, variant]}"


def plan(
    name: str,
    *,
    run: str,
    profile: str | None = None,
    seeds: Sequence[int] = (),
    variants: Sequence[str] = (),
) -> list[SweepRun]:
    """The runs of a sweep, seed by seed; all of its variants and its own seeds where none are
    named. Nothing is trained: `SweepRun.finished` says what would be."""
    sweep = load(name)
    for variant in variants:
        choose(f"variant of {name}", variant, sweep.overrides)
    common = [*sweep.common, *(load_profile(profile).overrides if profile else [])]
    tasks = []
    for seed, variant in itertools.product(seeds or sweep.seeds, variants or sweep.overrides):
        overrides, folder = [*common, *sweep.overrides[variant]], variant_run(run, name, variant)
        tasks.append(SweepRun(name, variant, seed, sweep.recipe, overrides, folder))
    return tasks


def execute(tasks: Sequence[SweepRun], *, jobs: int = 1, device: str = "cpu") -> dict[str, str]:
    """Train and evaluate what is not finished, `jobs` processes at a time that share the cores; on
    device "cuda" each has a GPU of its own, as far as there are so many.

    A run that was interrupted goes on where it was; one that fails does not stop the others. Ctrl-C
    ends all.

    Returns:
        The runs that failed, each with its reason.

    Raises:
        ValueError: a variant's settings are wrong; nothing is trained then.
    """
    distinct = {task.folder: task for task in tasks}.values()  # equal variants are run once
    waiting = [task for task in distinct if not task.finished]
    for config in {task.config.data.prepared: task.config for task in waiting}.values():
        runs.prepared(config)  # once, and not in every process
    failed: dict[str, str] = {}
    processes: list[subprocess.Popen] = []
    places = _environments(jobs, device)
    bar = tqdm(total=len(distinct), initial=len(distinct) - len(waiting), unit="run", desc="sweep")
    with bar, ThreadPoolExecutor(jobs) as pool:
        done = {pool.submit(_train, run, device, places, processes): run for run in waiting}
        try:
            for future in as_completed(done):
                bar.update()
                if reason := future.result():
                    failed[str(done[future])] = reason
                said = f"failed: {done[future]}: {reason}" if reason else f"done: {done[future]}"
                tqdm.write(said, file=sys.stderr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in done):  # one may be about to start
                for process in processes:
                    process.terminate()
                time.sleep(POLL)
            raise
    return failed


def _environments(jobs: int, device: str) -> SimpleQueue[dict[str, str]]:
    """Of each of `jobs` runs at a time: its share of the cores, and a GPU of its own."""
    threads = str(max(1, torch.get_num_threads() // jobs))
    shared = {**os.environ, "OMP_NUM_THREADS": threads, "TQDM_DISABLE": "1"}
    count = torch.cuda.device_count() if device == "cuda" else 0
    own = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    places: SimpleQueue = SimpleQueue()
    for number in range(jobs):
        places.put(shared | ({"CUDA_VISIBLE_DEVICES": own[number % count]} if count else {}))
    return places


def _train(
    task: SweepRun, device: str, places: SimpleQueue, processes: list[subprocess.Popen]
) -> str | None:
    """Why the run failed, in a line, or None; it takes one of the environments while it runs."""
    environment = places.get()
    quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
    process = subprocess.Popen(command(task, device), env=environment, stdout=quiet, stderr=pipe)
    processes.append(process)
    said = process.communicate()[1].decode(errors="replace").strip()
    places.put(environment)
    reason = said or f"ended with code {process.returncode}"
    return reason.splitlines()[-1] if process.returncode else None


def command(task: SweepRun, device: str) -> list[str]:
    """What trains one run, in a process of its own."""
    train = [sys.executable, "-m", "tvrkit", "train", task.recipe, *task.overrides]
    return [*train, "--run", task.run, "--seed", str(task.seed), "--device", device]


def finished(name: str, run: str) -> dict[str, dict[int, Run]]:
    """The finished runs of a sweep: variant -> seed -> run.

    Raises:
        ValueError: a run has other settings than its variant, or differs from the reference's
            (where that is missing, the first) in data or in more settings than the two variants'
            own.
    """
    sweep = load(name)
    done = {variant: runs.find(variant_run(run, name, variant)) for variant in sweep.overrides}
    order = sorted(done, key=lambda variant: variant != sweep.reference)
    every = [(each, sweep.overrides[variant]) for variant in order for each in done[variant]]
    for each, own in every:
        _check_comparable(each, own, *every[0])
    return {key: {each.seed: each for each in seeds} for key, seeds in done.items() if seeds}


def _check_comparable(run: Run, own: list[str], first: Run, first_own: list[str]) -> None:
    """ValueError unless the run has its own overrides, and differs from the first in both runs'
    own alone."""
    if _with(own, run) != run.config:
        raise ValueError(f"{run.folder} lacks {' '.join(own)}: remove the folder, sweep again")
    if run.card["data"] != first.card["data"]:
        raise ValueError(f"{run.folder} was trained on other data than {first.folder}")
    both = [*first_own, *own]
    if _with(both, run) != _with(both, first):
        raise ValueError(f"{run.folder} and {first.folder} differ in more than {' '.join(both)}")


def _with(overrides: list[str], run: Run) -> Config:
    return replace(load_recipe(str(run.folder / "config.yaml"), overrides), recipe=run.recipe)


def part_sides(name: str, run: str) -> dict[str, tuple[list, list]]:
    """Each part -> by seed, the variants with it, and those that lack nothing but it.

    Raises:
        ValueError: as `finished`.
    """
    done = {frozenset(key.split("-")) - {"none"}: each for key, each in finished(name, run).items()}
    sides = {}
    for part in load(name).parts:
        whole = [parts for parts in done if part in parts and parts - {part} in done]
        pairs = [(done[parts], done[parts - {part}]) for parts in whole]
        seeds = [k for k in (pairs[0][0] if pairs else ()) if all(k in s for p in pairs for s in p)]
        ours, theirs = ([[pair[at][k] for pair in pairs] for k in seeds] for at in (0, 1))
        sides[part] = ours, theirs
    return sides


def sides(name: str, run: str) -> dict[str, tuple[list, list]]:
    """Each variant but the reference -> its runs, and the reference's; empty where that is not
    there.

    Raises:
        ValueError: as `finished`.
    """
    done = {variant: [*seeds.values()] for variant, seeds in finished(name, run).items()}
    reference = done.pop(load(name).reference, [])
    return {variant: (seeds, reference) for variant, seeds in done.items() if reference}


def tests(name: str, run: str) -> pd.DataFrame:
    """Every variant against the reference: a row per variant and metric of `compare.TESTED`.

    Returns:
        DataFrame, index variant: metric, and the columns of `compare.paired_test` and, adjusted
        over all rows, `statistics.with_verdicts`; empty where the reference is not there.

    Raises:
        ValueError: as `finished`.
    """
    return paired_tests(sides(name, run))


def main_effects(name: str, run: str) -> pd.DataFrame:
    """What each part is worth on average over the other parts, there or not: `tests`,
    index part. Of each seed, the mean over all variants with the part against that over those that
    lack nothing but it.

    Raises:
        ValueError: as `part_sides`.
    """
    return paired_tests(part_sides(name, run))


def paired_tests(sides: Mapping[Any, tuple[list, list]]) -> pd.DataFrame:
    """`compare.paired_test` of the two sides of each name that has runs on every metric of
    `compare.TESTED`, all adjusted together: index name."""
    rows = {
        (name, metric): compare.paired_test(ours, theirs, metric)
        for name, (ours, theirs) in sides.items()
        if ours
        for metric in compare.TESTED
    }
    if not rows:
        return pd.DataFrame(columns=["metric", "difference"])
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["name", "metric"])
    return statistics.with_verdicts(table).reset_index("metric")


def training_command(name: str, run: str, profile: str | None = None) -> str:
    """What trains a sweep, as it is typed."""
    return f"tvrkit sweep {name} --run {run}" + (f" --profile {profile}" if profile else "")


def shown(name: str, run: str) -> pd.DataFrame:
    """`tables.summary` of each variant with finished runs, and `tests`, as a reader sees them: what
    a variant reaches, by how much that differs from the reference, and what it costs."""
    done, tested = finished(name, run), tests(name, run)
    compared: dict[str, pd.Series] = {}
    for metric, rows in tested.groupby("metric", sort=False) if len(tested) else ():
        compared[f"{metric}, difference"] = rows.apply(tables.difference, axis=1)
    for about in ("recipe", "weights") if len(tested) else ():
        compared[about] = tested.groupby(level=0).apply(tables.verdicts, about)
    cells = {key: tables.cells(tables.summary([*seeds.values()])) for key, seeds in done.items()}
    texts = pd.DataFrame.from_dict(cells, orient="index").rename_axis("variant")
    table = texts.join(pd.DataFrame(compared, dtype=object))
    return table[["t2v R@1", "v2t R@1", "rsum", *compared, *COST]].fillna("")


def figure(name: str, run: str) -> Figure:
    """`tests` of a sweep as a figure: what each variant gains over the reference."""
    sweep = load(name)
    minus = f"difference to {sweep.reference} (points)"
    return figures.forest_plot(tests(name, run), xlabel=minus, title=sweep.question)
