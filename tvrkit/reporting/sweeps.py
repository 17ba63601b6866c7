"""Sweeps: variants of a recipe, trained with several seeds and compared with one of them, the
reference.

`recipes/sweeps.yaml` says which. The runs of a variant are in
reports/<run>/ablations/<sweep>/<variant>/, each with a sweep.json beside its run.json that says
among how many at a time it was started. Variants of several sweeps with
equal settings are one: they share the folder of the first of them in the file.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import torch
import yaml
from tqdm.auto import tqdm

from tvrkit import files
from tvrkit.evaluation import compare, statistics
from tvrkit.recipes import load_profile, load_recipe
from tvrkit.settings import Config, choose, parse, settings
from tvrkit.training import runs

POLL = 0.2  # seconds between looks at the running processes


@settings
class Sweep:
    """One question and the variants that answer it: named `variants`, a `grid`, or the `values` of
    one `key`.

    Attributes:
        question: what the sweep asks.
        recipe: that all variants start from.
        reference: name of the variant that the others are compared with.
        common: overrides of every variant.
        key: the setting that is swept; a variant's name is its value.
        values: of `key`.
        variants: name -> overrides.
        grid: axis -> level -> overrides; one variant for each combination, its name the levels
            joined by "-". A part
            that is there or not has two levels: its name, and "".
        log: the values are shown on a logarithmic axis.
        seeds: of each variant.
    """

    question: str
    recipe: str
    reference: str
    common: list[str] = dataclasses.field(default_factory=list)
    key: str | None = None
    values: list[int | float] = dataclasses.field(default_factory=list)
    variants: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    grid: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)
    log: bool = False
    seeds: list[int] = dataclasses.field(default_factory=list)

    @property
    def overrides(self) -> dict[str, list[str]]:
        """Name of each variant -> its overrides, without the common ones."""
        found = dict(self.variants) | {str(value): [f"{self.key}={value}"] for value in self.values}
        for levels in (
            itertools.product(*(axis.items() for axis in self.grid.values())) if self.grid else ()
        ):
            found[_joined(level for level, _ in levels)] = [
                override for _, overrides in levels for override in overrides
            ]
        return found


def _joined(levels: Iterable[str]) -> str:
    return "-".join(level for level in levels if level) or "none"


@dataclass(frozen=True)
class Task:
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
        return (self.folder / "run.json").exists() and runs.read_config(self.folder) == self.config


def load_all() -> dict[str, Sweep]:
    """Every sweep of the package by name.

    Raises:
        ValueError: an unknown key, a wrong type, or a reference that is none of the variants.
    """
    raw = yaml.safe_load((files.RECIPES / "sweeps.yaml").read_text(encoding="utf-8"))
    found = {}
    for name, values in raw["sweeps"].items():
        common = [*raw["common"], *values.get("common", [])]
        found[name] = parse(
            Sweep, {"seeds": raw["seeds"], **values, "common": common}, f"sweep {name}"
        )
        choose(f"reference of sweep {name}", found[name].reference, found[name].overrides)
    return found


def load(name: str) -> Sweep:
    """One sweep by name."""
    sweeps = load_all()
    return sweeps[choose("sweep", name, sweeps)]


@cache
def homes() -> dict[tuple[str, str], str]:
    """(sweep, variant) -> "sweep/variant" of the first with equal settings."""
    first, found = [], {}
    for name, sweep in load_all().items():
        for variant, overrides in sweep.overrides.items():
            config = Task(name, variant, 0, sweep.recipe, [*sweep.common, *overrides], "").config
            equal = [home for other, home in first if other == config]
            found[name, variant] = equal[0] if equal else f"{name}/{variant}"
            first.append((config, found[name, variant]))
    return found


def run_name(run: str, name: str, variant: str) -> str:
    """Where `runs` keeps a variant."""
    return f"{run}/ablations/{homes()[name, variant]}"


def plan(
    name: str,
    *,
    run: str,
    profile: str | None = None,
    seeds: Sequence[int] = (),
    variants: Sequence[str] = (),
) -> list[Task]:
    """The runs of a sweep, seed by seed; all of its variants and its own seeds where none are
    named."""
    sweep = load(name)
    chosen = [
        choose(f"variant of {name}", variant, sweep.overrides)
        for variant in variants or sweep.overrides
    ]
    common = [*sweep.common, *(load_profile(profile).overrides if profile else [])]
    return [
        Task(
            name,
            variant,
            seed,
            sweep.recipe,
            [*common, *sweep.overrides[variant]],
            run_name(run, name, variant),
        )
        for seed in seeds or sweep.seeds
        for variant in chosen
    ]


def execute(tasks: Sequence[Task], *, jobs: int = 1, device: str = "cpu") -> dict[str, str]:
    """Train and evaluate what is not finished, `jobs` processes at a time that share the cores.

    A run that was interrupted goes on where it was; one that fails does not stop the others. Ctrl-C
    ends all.

    Returns:
        The runs that failed, each with its reason.

    Raises:
        ValueError: a variant's settings are wrong; nothing is trained then.
    """
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    tasks = {task.folder: task for task in tasks}.values()  # equal variants are run once
    waiting = [task for task in tasks if not task.finished]
    for config in {task.config.data.prepared: task.config for task in waiting}.values():
        runs.prepared(config)  # once, and not in every process
    running, failed = {}, {}
    bar = tqdm(total=len(tasks), initial=len(tasks) - len(waiting), unit="run", desc="sweep")
    try:
        with bar:
            while waiting or running:
                while waiting and len(running) < jobs:
                    task = waiting.pop(0)
                    running[task.folder] = (task, *_start(task, jobs, device))
                    bar.set_postfix_str(", ".join(str(task) for task, *_ in running.values()))
                time.sleep(POLL)
                for task, process, errors in [
                    one for one in running.values() if one[1].poll() is not None
                ]:
                    del running[task.folder]
                    bar.update()
                    with errors:
                        reason = _reason(process, errors)
                    if process.returncode:
                        failed[str(task)] = reason
                        tqdm.write(f"failed: {task}: {failed[str(task)]}", file=sys.stderr)
    finally:
        for _, process, _ in running.values():
            process.terminate()
            process.wait()
    return failed


def _start(task: Task, jobs: int, device: str) -> tuple[subprocess.Popen, IO[str]]:
    files.write_json(task.folder / "sweep.json", {"jobs": jobs})
    command = [sys.executable, "-m", "tvrkit.cli", "train", task.recipe, *task.overrides]
    command += ["--run", task.run, "--seed", str(task.seed), "--device", device]
    threads = str(max(1, torch.get_num_threads() // jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "TQDM_DISABLE": "1"}
    errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115  closed with the task
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=errors
    ), errors


def _reason(process: subprocess.Popen, errors: IO[str]) -> str:
    errors.seek(0)
    lines = errors.read().strip().splitlines()
    return lines[-1] if lines else f"ended with code {process.returncode}"


def results(name: str, run: str) -> pd.DataFrame:
    """One row per variant with finished runs: accuracy, verdict against the reference, and what it
    cost.

    `R@1` is text to video. The paired test pools the seeds that variant and reference share: videos
    are swapped, with all their captions and in all seeds at once; it speaks of these weights.
    `p_holm` is adjusted for the number of variants. `over_seeds` is the verdict of Welch's t test
    on R@1 over seeds, adjusted likewise: it speaks of the recipe, and of two or three seeds it
    tells large differences only.

    Returns:
        DataFrame, index variant: seeds, R@1, deviation, R@1 low, R@1 high (95 %), v2t R@1, rsum,
        seconds, memory_mb, threads, jobs (runs at a time, while it was timed); and, where the
        reference is there, difference (points), low, high, effect (queries, mean over seeds),
        queries (of one seed), p_value, over_seeds, p_holm, verdict.

    Raises:
        ValueError: a run has other settings than its variant, or differs from the reference's
            (where that is missing, the first) in data or in more settings than the two variants'
            own.
    """
    sweep, found = load(name), finished(name, run)
    reference, rows = found.get(sweep.reference, {}), []
    over_seeds = _over_seeds(
        {variant: of for variant, of in found.items() if variant != sweep.reference}, reference
    )
    for variant, of in found.items():
        shared = [] if variant == sweep.reference else [seed for seed in of if seed in reference]
        row = {"variant": variant, **_means(list(of.values()))}
        if shared:
            row |= _paired([(of[seed], reference[seed]) for seed in shared])
        if variant in over_seeds:
            row["over_seeds"] = over_seeds[variant]
        rows.append(row)
    return _judged(rows, "variant")


def main_effects(name: str, run: str) -> pd.DataFrame:
    """What each axis of a grid of parts, there or not, is worth on average over the other axes.

    Every variant with the part against the variant that lacks nothing but it, all such pairs and
    seeds in one paired
    test: videos are swapped in all of them at once.

    Returns:
        DataFrame, index part: pairs (of runs), difference (points), low, high, effect (queries,
        mean over the pairs), queries (of one run), p_value, p_holm, verdict. Parts without a
        finished pair are left out.

    Raises:
        ValueError: as `results`; or an axis does not have two levels.
    """
    grid, found, rows = load(name).grid, finished(name, run), []
    if wrong := [axis for axis, levels in grid.items() if len(levels) != 2]:
        raise ValueError(
            f"main effects of {name}: expected two levels of each axis, not so {', '.join(wrong)}"
        )
    for number, axis in enumerate(grid):
        others = [[*levels] for place, levels in enumerate(grid.values()) if place != number]
        pairs = []
        for rest in itertools.product(*others):
            both = [_joined([*rest[:number], level, *rest[number:]]) for level in grid[axis]]
            ours, theirs = (found.get(variant, {}) for variant in both)
            pairs += [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
        if pairs:
            rows.append({"part": axis, "pairs": len(pairs), **_paired(pairs)})
    return _judged(rows, "part")


def finished(name: str, run: str) -> dict[str, dict[int, runs.Run]]:
    """The finished runs of a sweep: variant -> seed -> run.

    Raises:
        ValueError: as `results`.
    """
    sweep = load(name)
    found = {variant: runs.find(run_name(run, name, variant)) for variant in sweep.overrides}
    every = [(variant, one) for variant, of in found.items() for one in of]
    every.sort(
        key=lambda pair: pair[0] != sweep.reference
    )  # the reference first, the others as they were
    for variant, one in every:
        base, first = every[0]
        ran, own = str(one.folder / "config.yaml"), sweep.overrides[variant]
        if load_recipe(ran, own) != load_recipe(ran):
            raise ValueError(
                f"{one.folder} is a run without {' '.join(own)}: remove the folder and sweep again"
            )
        if one.card["data"] != first.card["data"]:
            raise ValueError(
                f"{one.folder} was trained on other data than {first.folder}: not comparable"
            )
        both = [
            *sweep.overrides[base],
            *own,
        ]  # with these the two must be one: nothing else may differ
        if load_recipe(ran, both) != load_recipe(str(first.folder / "config.yaml"), both):
            raise ValueError(
                f"{one.folder} differs from {first.folder} in more than {' '.join(both)}: not comparable"
            )
    return {variant: {one.seed: one for one in of} for variant, of in found.items() if of}


def _over_seeds(
    found: dict[str, dict[int, runs.Run]], reference: dict[int, runs.Run]
) -> dict[str, str]:
    """Variant -> verdict over seeds, on Holm's p-values; where variant and reference have two seeds
    or more."""
    scores = {
        variant: [one.metrics["t2v R@1"] for one in of.values()] for variant, of in found.items()
    }
    theirs = [one.metrics["t2v R@1"] for one in reference.values()]
    enough = {variant: ours for variant, ours in scores.items() if min(len(ours), len(theirs)) > 1}
    tests = {variant: statistics.compare_seeds(ours, theirs) for variant, ours in enough.items()}
    adjusted = statistics.holm([test["p_value"] for test in tests.values()])
    pairs = zip(tests.items(), adjusted, strict=True)
    return {variant: statistics.verdict(test["difference"], p) for (variant, test), p in pairs}


def _means(of: list[runs.Run]) -> dict:
    """Means over the seeds of a variant."""
    mean, deviation = statistics.mean_and_deviation([one.metrics["t2v R@1"] for one in of])
    low, high = statistics.interval(statistics.bootstrap_metrics(*compare.pooled(of, "t2v"))["R@1"])
    notes = [json.loads((one.folder / "sweep.json").read_text(encoding="utf-8")) for one in of]
    return {
        "seeds": len(of),
        "R@1": mean,
        "deviation": deviation,
        "R@1 low": low,
        "R@1 high": high,
        "v2t R@1": np.mean([one.metrics["v2t R@1"] for one in of]),
        "rsum": np.mean([one.metrics["rsum"] for one in of]),
        "seconds": np.mean([one.card["train_seconds"] for one in of]),
        "memory_mb": np.mean([one.card["peak_memory_mb"] for one in of]),
        "threads": " ".join(sorted({str(one.card["torch_threads"]) for one in of})),
        "jobs": " ".join(sorted({str(note["jobs"]) for note in notes})),
    }


def _paired(pairs: list[tuple[runs.Run, runs.Run]]) -> dict:
    """The paired test of the first against the second of each pair; effect and queries are those of
    one pair."""
    ours, theirs = (compare.pooled(side, "t2v") for side in zip(*pairs, strict=True))
    test = statistics.compare_ranks(ours[0], theirs[0], ours[1])
    row = {"difference": test.difference, "low": test.interval[0], "high": test.interval[1]}
    return row | {
        "effect": test.effect / len(pairs),
        "queries": test.queries // len(pairs),
        "p_value": test.p_value,
    }


def _judged(rows: list[dict], index: str) -> pd.DataFrame:
    """The rows, with verdicts on Holm's p-values of those that were tested."""
    table = pd.DataFrame(rows).set_index(index) if rows else pd.DataFrame()
    if "p_value" in table:
        tested = table["p_value"].notna()
        table.loc[tested, "p_holm"] = statistics.holm(table.loc[tested, "p_value"])
        pairs = table.loc[tested, ["difference", "p_holm"]].itertuples(index=False)
        table.loc[tested, "verdict"] = [statistics.verdict(*pair) for pair in pairs]
    return table
