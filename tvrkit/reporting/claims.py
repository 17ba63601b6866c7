"""What the papers claim, and what a run's own paired tests say to it."""

from __future__ import annotations

import pandas as pd
import yaml

from tvrkit import files
from tvrkit.evaluation.ranks import DIRECTIONS
from tvrkit.reporting import sweeps, tables
from tvrkit.settings import parse, settings
from tvrkit.training.runs import Run, sound

UNTESTED = "not tested"


@settings
class Claim:
    """One sentence of a paper, and the runs that test it.

    Attributes:
        paper: whose claim it is.
        says: the claim.
        runs: folder and recipe below the run; with `against`.
        against: the same, of the runs that `runs` should beat.
        sweep: a sweep; with `part` or `variant`.
        part: an axis of the sweep's grid, with against without.
        variant: that the sweep's reference should beat.
    """

    paper: str
    says: str
    runs: str | None = None
    against: str | None = None
    sweep: str | None = None
    part: str | None = None
    variant: str | None = None

    def pairs(self, run: str) -> list[tuple[Run, Run]]:
        """The finished runs that test it, of one seed and protocol, ours first."""
        if self.sweep and self.part:
            return sweeps.part_pairs(self.sweep, run)[self.part]
        if self.sweep:
            done, reference = sweeps.finished(self.sweep, run), sweeps.load(self.sweep).reference
            pairs = sweeps.shared(done.get(reference, {}), done.get(self.variant or "", {}))
        else:
            pairs = sweeps.shared(_by_seed(f"{run}/{self.runs}"), _by_seed(f"{run}/{self.against}"))
        return [(a, b) for a, b in pairs if tables.protocol_of(a) == tables.protocol_of(b)]


def _by_seed(folder: str) -> dict[int, Run]:
    return {run.seed: run for run in sound(sorted(files.run(folder).glob("seed*")))}


def load() -> list[Claim]:
    """The claims of `assets/claims.yaml`."""
    raw = yaml.safe_load((files.ASSETS / "claims.yaml").read_text(encoding="utf-8"))
    return [parse(Claim, values, f"claim {place}") for place, values in enumerate(raw, 1)]


def results(run: str) -> pd.DataFrame:
    """One row per claim and direction: the paired test of R@1.

    p-values are adjusted in each direction over the claims that one sweep tests, or that whole
    recipes do: as notebooks 06 and 03 do it.

    Returns:
        DataFrame: paper, says, tested_on, direction, sweep; and of the claims that some runs test
        `tables.paired`, p_holm, verdict ("better", "worse", "can't tell").

    Raises:
        ValueError: as `sweeps.finished`.
    """
    rows = []
    for claim in load():
        pairs = claim.pairs(run)
        about = {"paper": claim.paper, "says": claim.says, "sweep": claim.sweep or ""}
        about["tested_on"] = _tested_on(claim, pairs, run)
        for direction in DIRECTIONS:
            test = tables.paired(pairs, direction) if pairs else {}
            rows.append({**about, "direction": direction, **test})
    families = pd.DataFrame(rows).groupby(["sweep", "direction"])
    return pd.concat([tables.with_verdicts(family) for _, family in families]).sort_index()


def _tested_on(claim: Claim, pairs: list[tuple[Run, Run]], run: str) -> str:
    if not pairs:
        sweep = claim.sweep and sweeps.training_command(claim.sweep, run)
        return sweep or f"{claim.runs} against {claim.against}"
    data, metrics = pairs[0][0].card["data"], pairs[0][0].metrics
    preset = (data.get("made_from") or {}).get("preset", "")
    videos = f"{data['protocol']} {preset}".strip() + f", {metrics['videos']:,} videos"
    count = f"{len(pairs)} pair{'s' * (len(pairs) > 1)} of runs"
    return f"{videos}, {count}" + (f", sweep {claim.sweep}" if claim.sweep else "")


def shown(results: pd.DataFrame) -> pd.DataFrame:
    """`results` as a reader sees it: a row per claim, a verdict per direction."""
    columns = {"t2v": "text to video", "v2t": "video to text"}
    about = results[["paper", "says", "tested_on"]].iloc[::2].reset_index(drop=True)
    cells = results.apply(_verdict, axis=1)
    for direction, title in columns.items():
        about[title] = cells[results["direction"] == direction].to_list()
    order = ["paper", "says", *columns.values(), "tested_on"]
    return about[order].rename(columns={"says": "it says", "tested_on": "tested on"})


def _verdict(row: pd.Series) -> str:
    if pd.isna(row.get("verdict")):
        return UNTESTED
    ends = tables.interval(row["low"], row["high"], sign="+")
    return f"{row['verdict']}: {row['difference']:+.1f} {ends}"
