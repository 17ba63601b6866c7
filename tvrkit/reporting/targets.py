"""Published targets: does a number that was printed lie within the interval of ours?"""

import pandas as pd

from tvrkit.evaluation.compare import published_results
from tvrkit.recipes import load_recipe, read_sections, to_dict
from tvrkit.reporting import tables
from tvrkit.reporting.tables import number
from tvrkit.training.runs import Run, changed_settings, find

COLUMNS = ["recipe", "metric", "ours", "published", "verdict", "source"]


def verdict(low: float, high: float, target: float) -> str:
    """Where the interval [low, high] of ours lies, seen from the target."""
    if low <= target <= high:
        return "reached: the target is inside our interval"
    side = ("below", "above") if target > high else ("above", "below")
    return f"ours is {side[0]}: the target is {side[1]} our interval"


def table(run: str) -> pd.DataFrame:
    """Texts: a row per recipe of reports/<run>/ and direction for which data/published_results.csv
    has an R@1 (its column `recipes` says of which), all seeds together.

    What keeps the two from being compared stands with the verdict: videos that are missing, a
    source that names no protocol, or another one, weights that nobody trained, or settings that
    are not the recipe's.
    """
    done, rows = find(run), []
    known = published_results().to_dict("records") if done else []
    for recipe, seeds in tables.by_recipe(done, given=True).items():
        ours = tables.summary(seeds)
        cells = tables.cells(ours)
        for row in (row for row in known if recipe in row["recipes"].split()):
            way, source = row["direction"], f"{row['source']} ({row['trust']})"
            name, interval = f"{way} R@1", cells[f"{way} 95 %"]
            where = verdict(ours[f"{name} low"], ours[f"{name} high"], row["R@1"])
            said = "; ".join([where, *_doubts(seeds[0], row)])
            shown = f"{cells[name]} {interval}"
            rows.append((recipe, name, shown, number(row["R@1"]), said, source))
    return pd.DataFrame(rows, columns=COLUMNS)


def _doubts(run: Run, row: dict) -> list[str]:
    """Why a run's numbers can't stand beside a published row."""
    protocol = run.card["data"]["protocol"]
    doubts = [part for part in tables.protocol_of(run).split(" · ") if part.startswith("NOT ")]
    if row["protocol"] != protocol or row["language"] != run.metrics["language"]:
        theirs = row["protocol"] and f"{row['protocol']} {row['language']}"
        doubts.append(f"its protocol: {theirs or 'not named'}, ours: {protocol}")
    doubts += ["ours: untrained weights"] * (run.card["selection"] == "untrained")
    own = to_dict(load_recipe(run.recipe))
    changed = changed_settings(own, read_sections(run.artefact("config.yaml")))
    return doubts + [f"not the recipe's: {', '.join(changed)}"] * bool(changed)


def sentences(run: str) -> list[str]:
    """A line per row of `table`."""
    line = "{recipe}, {metric}: {ours}, published {published}, {source}: {verdict}"
    return [line.format(**row) for row in table(run).to_dict("records")]
