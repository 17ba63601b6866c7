"""Is each part of a method alive? What `Method.signs` recorded after every epoch, judged."""

import pandas as pd

from tvrkit import files
from tvrkit.reporting.tables import title
from tvrkit.training.runs import Run

ALIVE = pd.read_csv(files.ASSETS / "signs.csv", index_col="sign")
"""By sign, from where on (`low`) and up to where (`high`) the part lives, and what is said outside
of it (`dead`)."""


def table(run: Run) -> pd.DataFrame:
    """A row per sign that was recorded: a column per epoch, `alive` (from, to), and `verdict`."""
    signs = run.curve.set_index("epoch").T.rename_axis("sign")
    signs = signs.loc[ALIVE.index.intersection(signs.index)]
    limits = ALIVE.loc[signs.index]
    ranges = [f"{low:g} to {high:g}" for low, high in zip(limits.low, limits.high, strict=True)]
    lives = signs.iloc[:, -1].between(limits.low, limits.high)
    return signs.assign(alive=ranges, verdict=limits.dead.mask(lives, "alive"))


def sentence(run: Run) -> str:
    """Which parts are dead after the last epoch, in words with numbers."""
    signs = table(run)
    if signs.empty:
        return "Whether each part is alive was not recorded."
    dead = signs[signs["verdict"] != "alive"]
    named = [f"{row.verdict} ({name} {row.iloc[-3]:.2g})" for name, row in dead.iterrows()]
    return f"Dead: {'; '.join(named)}." if named else f"All {len(signs)} signs say: alive."


def dead(recipes: dict[str, list[Run]]) -> str:
    """Which parts of recipes, given with their seeds, no seed keeps alive."""
    said = []
    for recipe, seeds in recipes.items():
        watched = [each for each in seeds if "curve.csv" in each.card["artefacts"]]
        lost = [w for each in watched for w in table(each)["verdict"] if w != "alive"]
        words = [word for word in dict.fromkeys(lost) if lost.count(word) == len(watched)]
        said += [f"{title(recipe)}: {'; '.join(words)}."] if words else []
    return f"Dead in every seed (signs: notebook 02). {' '.join(said) or 'No watched part.'}"
