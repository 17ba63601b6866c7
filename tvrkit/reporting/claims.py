"""What the papers claim, and what a run's own paired tests say to it."""

import pandas as pd
import yaml

from tvrkit import files
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
        part: of the sweep's parts, with against without.
        variant: that the sweep's reference should beat.
    """

    paper: str
    says: str
    runs: str | None = None
    against: str | None = None
    sweep: str | None = None
    part: str | None = None
    variant: str | None = None

    def sides(self, run: str) -> tuple[list, list]:
        """The finished runs that test it, of the same seeds and one protocol: ours, theirs."""
        if self.sweep and self.part:
            return sweeps.part_sides(self.sweep, run)[self.part]
        if self.sweep:
            done, reference = sweeps.finished(self.sweep, run), sweeps.load(self.sweep).reference
            return same_seeds(done.get(reference, {}), done.get(self.variant or "", {}))
        return same_seeds(*(by_seed(f"{run}/{name}") for name in (self.runs, self.against)))


def by_seed(folder: str) -> dict[int, Run]:
    """The finished runs in a folder of a recipe below reports/."""
    return {run.seed: run for run in sound(sorted(files.run(folder).glob("seed*")))}


def same_seeds(ours: dict[int, Run], theirs: dict[int, Run]) -> tuple[list, list]:
    """The runs of both sides whose seeds both have; none where their protocols differ."""
    seeds = [seed for seed in ours if seed in theirs]
    if len({tables.protocol_of(side[seed]) for side in (ours, theirs) for seed in seeds}) > 1:
        return [], []
    return [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]


def load() -> list[Claim]:
    """The claims of `assets/claims.yaml`."""
    raw = yaml.safe_load((files.ASSETS / "claims.yaml").read_text(encoding="utf-8"))
    return [parse(Claim, values, f"claim {place}") for place, values in enumerate(raw, 1)]


def results(run: str) -> pd.DataFrame:
    """One row per claim and metric of `compare.TESTED`, all adjusted together, or one row for a
    claim that no runs test.

    Returns:
        DataFrame, index number of the claim: paper, says, tested_on, and the columns of
        `sweeps.paired_tests`, NaN where nothing was.

    Raises:
        ValueError: as `sweeps.finished`.
    """
    rows, sides = {}, {}
    for number, claim in enumerate(load(), 1):
        sides[number] = claim.sides(run)
        tested_on = _tested_on(claim, sides[number][0], run)
        rows[number] = {"paper": claim.paper, "says": claim.says, "tested_on": tested_on}
    about = pd.DataFrame.from_dict(rows, orient="index").rename_axis("claim")
    return about.join(sweeps.paired_tests(sides))


def _tested_on(claim: Claim, ours: list, run: str) -> str:
    if not ours:
        sweep = claim.sweep and sweeps.training_command(claim.sweep, run)
        return sweep or f"{claim.runs} against {claim.against}"
    seeds = f"{len(ours)} seed{'s' * (len(ours) > 1)}"
    where = f"{on_data(ours[0][0] if claim.part else ours[0])}, {seeds}"
    return where + (f", sweep {claim.sweep}" if claim.sweep else "")


def on_data(run: Run) -> str:
    """What a run was evaluated on: "shapes quick, 1,000 videos"."""
    data, videos = run.card["data"], run.metrics["videos"]
    preset = (data.get("made_from") or {}).get("preset", "")
    return f"{data['protocol']} {preset}".strip() + f", {videos:,} videos"


def shown(results: pd.DataFrame) -> pd.DataFrame:
    """`results` as a reader sees it: a row per claim, with what the run says in sentences."""
    claims = results.groupby(level=0)
    table = claims[["paper", "says", "tested_on"]].first()
    table.insert(2, "this run says", claims.apply(sentences))
    return table.rename(columns={"says": "it says", "tested_on": "tested on"})


def sentences(tests: pd.DataFrame) -> str:
    """What a run says to one claim, from its rows of `results`."""
    untested = tests["difference"].isna().all()
    return UNTESTED if untested else f"With it minus without: {tables.judged(tests)}"
