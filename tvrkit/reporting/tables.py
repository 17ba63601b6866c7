"""Tables of finished runs, as numbers: means over seeds, intervals, paired tests.

Runs stand in one table only where they share a protocol (`protocol_of`).
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tvrkit import files
from tvrkit.evaluation import compare, statistics
from tvrkit.evaluation.evaluate import AS_GIVEN
from tvrkit.evaluation.ranks import DIRECTIONS
from tvrkit.training.runs import Run, find

TITLES = {"clip4clip": "CLIP4Clip", "dmae": "DMAE", "glscl": "GLSCL", "hmmc": "HMMC"}
MEANS = [*(f"{way} {metric}" for way in DIRECTIONS for metric in compare.METRICS), "rsum"]


def protocol_of(run: Run) -> str:
    """What two runs must share to stand in one table.

    Data set or protocol, preset, split, language, tie rule, and a hash over the settings a
    generated set was made with, the split's ids, counts and captions, and the videos that were
    missing. Whatever keeps a result from being compared with published ones is said in words.
    """
    data, metrics = run.card["data"], run.metrics
    split, language, made_from = metrics["split"], metrics["language"], data.get("made_from")
    # sets of earlier versions have no hash of their captions
    captions = data.get("captions_hash", {}).get(split, {}).get(language)
    content = [made_from, data["counts"][split], data["split_hash"][split], captions]
    content_json = json.dumps([*content, metrics["missing"]], sort_keys=True)
    content_hash = hashlib.sha256(content_json.encode()).hexdigest()[:12]
    preset = f" {made_from['preset']}" if made_from else ""
    parts = [f"{data['protocol']}{preset}", split, language, f"ties {metrics['ties']}"]
    parts.append(f"content {content_hash}")
    if data.get("partial"):
        parts.append("NOT COMPARABLE: prepared with --allow-partial")
    if metrics["missing"]:
        parts.append(f"NOT COMPARABLE: {len(metrics['missing'])} videos missing")
    return " · ".join(parts)


def comparable(run: str, first: Run, seeds: Sequence[int]) -> dict[str, list[Run]]:
    """Recipe -> its runs of these seeds, of all recipes in reports/<run>/ that have them all and
    share the protocol of the run `first`."""
    by_recipe: dict[str, dict[int, Run]] = {}
    for each in find(run):
        if each.seed in seeds and protocol_of(each) == protocol_of(first):
            by_recipe.setdefault(each.recipe, {})[each.seed] = each
    whole = {recipe: runs for recipe, runs in by_recipe.items() if len(runs) == len(seeds)}
    return {recipe: [runs[seed] for seed in seeds] for recipe, runs in whole.items()}


def results(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each recipe of each run folder, of runs of one protocol; best text-to-video R@1
    first.

    Each has name (the folders between reports/ and the recipe: "reference/ablations/..."), recipe,
    runs (its seeds, by seed), and what `summary` says.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        name = run.folder.parents[1].relative_to(files.home() / "reports").as_posix()
        groups.setdefault((name, run.recipe, run.card["selection"]), []).append(run)
    rows = [
        {"name": name, "recipe": recipe, "runs": seeds} | summary(seeds)
        for (name, recipe, _), seeds in sorted(groups.items())
    ]
    return sorted(rows, key=lambda row: row["t2v R@1"], reverse=True)


def by_recipe(runs: Sequence[Run], given: bool = False) -> dict[str, list[Run]]:
    """The recipes that were trained, by seed, best rsum first; with `given` those, too, whose
    weights were scored as they are."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if given or run.card["selection"] not in AS_GIVEN:
            groups.setdefault(run.recipe, []).append(run)
    rsum = {name: np.mean([run.metrics["rsum"] for run in seeds]) for name, seeds in groups.items()}
    return {name: groups[name] for name in sorted(groups, key=rsum.__getitem__, reverse=True)}


def summary(seeds: Sequence[Run]) -> dict[str, Any]:
    """What the runs of one recipe say together.

    Returns:
        seeds (their number); the mean of each metric ("t2v R@1", ..., "rsum"); "t2v R@1 sd",
        "v2t R@1 sd" and "rsum sd" (sample standard deviation over seeds, NaN for one);
        "t2v R@1 low" and "... high", and of v2t (95 % interval: test videos resampled, all seeds
        pooled); seconds (training, mean), memory_mb (largest), parameters, selection, device.
    """
    metrics = pd.DataFrame([run.metrics for run in seeds])
    cards = pd.DataFrame([run.card for run in seeds])
    row: dict[str, Any] = {"seeds": len(seeds), **metrics[MEANS].mean()}
    row |= metrics[["t2v R@1", "v2t R@1", "rsum"]].std().add_suffix(" sd").to_dict()
    for way in DIRECTIONS:
        row[f"{way} R@1 low"], row[f"{way} R@1 high"] = _interval(seeds, way)
    row |= {"seconds": cards["train_seconds"].mean(), "memory_mb": cards["peak_memory_mb"].max()}
    row |= cards.loc[0, ["parameters", "selection"]].to_dict()
    return row | {"device": ", ".join(cards["device"].unique())}


def cells(row: dict) -> dict[str, str]:
    """A `summary` as a reader sees it."""
    shown = {}
    for way in DIRECTIONS:
        shown[f"{way} R@1"] = number(row[f"{way} R@1"], 1, row[f"{way} R@1 sd"])
        shown[f"{way} 95 %"] = interval(row[f"{way} R@1 low"], row[f"{way} R@1 high"])
        shown |= {f"{way} {m}": number(row[f"{way} {m}"]) for m in compare.METRICS[1:]}
    shown |= {"rsum": number(row["rsum"], 1, row["rsum sd"]), "seeds": str(row["seeds"])}
    shown |= {"training, s": number(row["seconds"], 0), "memory, MB": number(row["memory_mb"], 0)}
    shown |= {"parameters": number(row["parameters"], 0), "epoch kept": row["selection"]}
    return shown | {"device": row["device"]}


def _interval(seeds: Sequence[Run], direction: str) -> list[float]:
    if len(seeds) == 1:
        return [seeds[0].metrics[f"{direction} R@1 {end}"] for end in ("low", "high")]
    draws = statistics.bootstrap_metrics(*compare.pooled(seeds, direction))
    return statistics.interval(draws["R@1"])


def title(recipe: str) -> str:
    """A recipe as sentences name it: "GLSCL" for glscl_shapes."""
    return TITLES.get(name := recipe.removesuffix("_shapes"), name)


def number(value: float, digits: int = 1, sd: float = np.nan) -> str:
    """A number as tables show it: "34.4", "34.4 ± 0.9", "4,476,929"."""
    return f"{value:,.{digits}f}" + ("" if np.isnan(sd) else f" ± {sd:.{digits}f}")


def interval(low: float, high: float, digits: int = 1, sign: str = "") -> str:
    """An interval as tables show it: "[31.4, 37.6]"; `sign` "+" for differences."""
    return f"[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def p_value(value: float) -> str:
    """A p-value as sentences show it: "p = 0.012", "p < 0.001"."""
    return f"p = {value:.3f}" if value >= 0.0005 else "p < 0.001"


def difference(test: pd.Series) -> str:
    """A row of `compare.paired_test`: "+2.5 [-0.2, +5.3]"."""
    return f"{test['difference']:+.1f} {interval(test['low'], test['high'], sign='+')}"


def verdicts(tests: pd.DataFrame, about: str) -> str:
    """The verdicts of one comparison on its metrics: "can't tell", or "v2t R@1 better"."""
    sure = tests[~tests[about].isin(statistics.UNTOLD)]
    return ", ".join(sure["metric"] + " " + sure[about]) or tests[about].iloc[0]


def judged(tests: pd.DataFrame) -> str:
    """One comparison on its metrics: the differences, and both verdicts with the lowest of their
    adjusted p-values."""
    said = [", ".join(f"{test['metric']} {difference(test)}" for _, test in tests.iterrows())]
    for about, name in (("recipe", "the recipe"), ("weights", "these weights")):
        lowest = tests[f"holm_{about}"].min()
        known = "" if np.isnan(lowest) else f" (lowest {p_value(lowest)})"
        said.append(f"About {name}: {verdicts(tests, about)}{known}")
    return ". ".join(said) + "."
