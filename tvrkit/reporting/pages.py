"""Pages made from run folders alone; none of them loads anything from the network.

reports/<run>/index.html answers a visitor: what the papers claim and what the run says to it, one
table of eight columns, one figure. All columns and diagnostics are on details.html beside it,
sweeps and other sub-runs on sweeps.html. reports/index.html has all runs.
"""

import itertools
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from tvrkit import figures, files, html
from tvrkit.evaluation.evaluate import AS_GIVEN
from tvrkit.inspection import diagnostics
from tvrkit.reporting import claims, signs, targets
from tvrkit.reporting.tables import by_recipe, cells, protocol_of, results
from tvrkit.training.card import read_diagnostics
from tvrkit.training.runs import Run, find, sound

ABSENT = "–"
NUMBERED = "[0-9][0-9]_*"  # what a notebook leaves begins with its number
FEW = ["t2v R@1", "t2v 95 %", "v2t R@1", "v2t 95 %", "rsum", "seeds"]
OF_RUN = ["recipe", *FEW, "training, s"]
OF_ALL = ["recipe", "run", *FEW]
Tables = list[tuple[str, pd.DataFrame]]  # (what all rows share, texts and links)


def sections(run: str) -> dict[str, list[Run]]:
    """The finished runs below reports/<run>/: its own under "", sub-runs under "released",
    "contrast" or "ablations/<sweep>"; damaged ones as `runs.sound`."""
    root = files.run(run)
    parts: dict[str, list[Run]] = {}
    for each in sound(_begun(root)):
        inner = each.folder.parents[1].relative_to(root).parts
        parts.setdefault("/".join(inner[:2]), []).append(each)
    return dict(sorted(parts.items()))


def _begun(root: Path) -> list[Path]:
    """The folders below `root` that runs are written to: <recipe>/seed<k>."""
    return sorted(folder for folder in root.glob("**/*/seed*") if folder.is_dir())


def run_names() -> list[str]:
    """The folders of reports/ that hold a finished run.

    Raises:
        FileNotFoundError: there is no reports/.
    """
    root = files.home() / "reports"
    if not root.is_dir():
        raise FileNotFoundError("no reports/ yet: run `tvrkit reproduce` or `tvrkit train` first")
    return [path.name for path in sorted(root.iterdir()) if path.is_dir() and sections(path.name)]


def write_index(run: str) -> Path:
    """Write index.html, details.html and sweeps.html of reports/<run>/.

    Returns:
        The index.

    Raises:
        ValueError: nothing below reports/<run> is finished.
    """
    root, parts = files.run(run), sections(run)
    if not parts:
        raise ValueError(f"reports/{run} has no finished recipe: run `tvrkit reproduce` first")
    main = parts.pop("", [])
    tables, tested = _tables(main, root), claims.results(run)
    details = {"": tables, "Diagnostics": _diagnostics(main), "Is each part alive?": _signs(main)}
    below = {name: _tables(part, root, name) for name, part in parts.items()}
    back = {"up": "index.html", "up_title": run}
    _write(root / "details.html", title=f"{run}: all columns", sections=details, **back)
    _write(root / "sweeps.html", title=f"{run}: sub-runs", sections=below, **back)
    values = {"title": run, "has_sweeps": bool(parts), **_not_shown(root)}
    values |= {"targets": targets.table(run), "dead": signs.dead(by_recipe(main))}
    values |= {"claims": claims.shown(tested), "figure": _claims_figure(tested, root)}
    values |= {"tables": _few(tables, OF_RUN), "notebooks": _by_notebook(root, f"{NUMBERED}.html")}
    values |= {"figures": _by_notebook(root, f"figures/{NUMBERED}.png")}
    return _write(root / "index.html", "run.html", **values)


def write_leaderboard() -> Path:
    """Write reports/index.html: all runs, one table of eight columns per protocol, then their
    sub-runs."""
    root = files.home() / "reports"
    parts = {name: sections(name) for name in run_names()}
    main = [run for part in parts.values() for run in part.pop("", [])]
    below = {"": _few(_tables(main, root), OF_ALL)}
    for name, part in parts.items():
        for inner, runs in part.items():
            below[f"{name}/{inner}"] = _few(_tables(runs, root, inner), OF_ALL)
    back = {"up": "../README.md", "up_title": "tvrkit"}
    return _write(root / "index.html", title="All runs", sections=below, **back)


def markdown(run: str) -> str:
    """A run's claims and its tables of few columns, as Markdown: what reports/README.md shows."""
    tables = [("", claims.shown(claims.results(run)))]
    tables += _few(_tables(find(run), files.run(run)), OF_RUN)
    return "\n\n".join(f"{label}\n\n{as_markdown(frame)}".strip() for label, frame in tables) + "\n"


def _write(path: Path, template: str = "tables.html", **values: object) -> Path:
    files.write_text(path, html.render(template, **values))
    return path


#  ------------------------------------------------------------------------------------------------


def _tables(runs: Sequence[Run], page: Path, section: str = "") -> Tables:
    """A table per protocol of the runs in `section`, for a page in the folder `page`."""
    tables = []
    for protocol, group in itertools.groupby(sorted(runs, key=protocol_of), protocol_of):
        rows = [_row(row, page, section) for row in results(list(group))]
        tables.append((protocol, pd.DataFrame(rows, dtype=object)))  # as text, links were escaped
    return tables


def _few(tables: Tables, columns: list[str]) -> Tables:
    return [(label, frame[columns]) for label, frame in tables]


def _row(row: dict, page: Path, section: str) -> dict[str, str]:
    """One row; what a sub-run's folders say beyond the section stands beside the recipe."""
    run, _, inner = row["name"].partition("/")
    variant = inner.removeprefix(section).strip("/")
    recipe = f"{row['recipe']} · {variant}" if variant else row["recipe"]
    given = f" ({row['selection']})" if row["selection"] in AS_GIVEN else ""
    head = {"recipe": recipe + given, "run": _link(run, files.run(run) / "index.html", page)}
    folders = [run.folder for run in row["runs"]]
    made = [file for folder in folders for file in sorted(folder.glob(f"{NUMBERED}.html"))]
    links = [_link(file.stem[:2], file, page) for file in made]
    cards = [_link(f"seed {run.seed}", run.folder / "run.json", page) for run in row["runs"]]
    tail = {"run cards": Markup(" ").join(cards), "notebooks": Markup(" ").join(links) or ABSENT}
    return head | cells(row) | tail


def _address(target: Path, page: Path) -> str:
    return quote(os.path.relpath(target, page).replace(os.sep, "/"))


def _link(text: str, target: Path, page: Path) -> Markup:
    if not target.exists() and target.name != "index.html":  # the index is about to be written
        return Markup.escape(text)
    return Markup('<a href="{}">{}</a>').format(_address(target, page), text)


def _diagnostics(runs: Sequence[Run]) -> Tables:
    """What notebooks 04 and 05 measured against the truth: a row per number, a column per run."""
    shown: dict[str, dict[str, str]] = {}
    for run in runs:
        for file in sorted(run.folder.glob("diagnostics_*.json")):
            for title, ends in read_diagnostics(file).items():
                text = diagnostics.format_interval(ends)
                shown.setdefault(title, {})[f"{run.recipe}, seed {run.seed}"] = text
    table = pd.DataFrame(shown).T.sort_index(axis=1).rename_axis("number").reset_index()
    label = f"Mean and 95 % interval; {ABSENT}: the method has no such number"
    return [(label, table.fillna(ABSENT))] if shown else []


def _signs(runs: Sequence[Run]) -> Tables:
    """A table per run of what shows that each part is alive, epoch by epoch."""
    watched = [run for run in runs if "curve.csv" in run.card["artefacts"]]
    tables = [(f"{run.recipe}, seed {run.seed}", signs.table(run)) for run in watched]
    return [
        (name, table.round(3).reset_index().astype(str)) for name, table in tables if len(table)
    ]


def _claims_figure(tested: pd.DataFrame, root: Path) -> str | None:
    rows = tested[tested["difference"].notna()]
    if rows.empty:
        return None
    names = [textwrap.fill(f"{row.paper}: {row.says}", 40) for row in rows.itertuples()]
    figure = figures.forest_plot(rows.set_axis(names), xlabel="difference (points)")
    figures.save(figure, root / "figures", "claims")
    return "figures/claims.png"


def _not_shown(root: Path) -> dict[str, list[str]]:
    """What is in no table: runs that are `unfinished`, and those that are `damaged`, with why."""
    lists: dict[str, list[str]] = {"unfinished": [], "damaged": []}
    for folder in _begun(root):
        name = folder.relative_to(root).as_posix()
        if not (folder / "run.json").exists():
            lists["unfinished"].append(name)
        elif reason := Run(folder).damage():
            lists["damaged"].append(f"{name}: {reason}")
    return lists


def _by_notebook(root: Path, pattern: str) -> list[dict[str, str]]:
    """The files that notebooks left: notebook, recipe ("" for the run's own), label (name of a
    figure, seed), link."""
    names = {page.stem[:2]: page.stem.replace("_", " ") for page in root.rglob(f"{NUMBERED}.html")}
    left = []
    for path in sorted([*root.glob(pattern), *root.glob(f"*/seed*/{pattern}")]):
        recipe, _, inner = path.relative_to(root).as_posix().rpartition("/seed")
        name = "" if path.suffix == ".html" else path.stem.replace("_", " ")
        label = " · ".join(filter(None, [name, recipe and f"seed {inner.split('/')[0]}"]))
        about = {"notebook": names.get(path.stem[:2], path.stem[:2]), "recipe": recipe}
        left.append(about | {"label": label or "open", "link": _address(path, root)})
    return left


def as_markdown(frame: pd.DataFrame) -> str:
    """A table of texts; what a cell holds stays text."""
    rows = [[*frame.columns], ["---"] * len(frame.columns)]
    for row in frame.itertuples(index=False):
        rows.append([re.sub(r"([\\`*|<>\[\]])", r"\\\1", str(cell)) for cell in row])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
