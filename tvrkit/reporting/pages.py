"""Pages made from run folders alone: `reports/<run>/index.html`, `reports/README.md` and
`reports/index.html`.

Runs are compared in one table only where they share a protocol (`protocol_of`). A run of another
one (`reports/<run>/released/...`, `reports/<run>/ablations/<sweep>/...`) stands in a section of its
own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd

from tvrkit import files
from tvrkit.evaluation import compare, statistics
from tvrkit.training import runs

WAYS = ("t2v", "v2t")
MEANS = ("R@1", "R@5", "R@10", "MdR", "MnR")
ABSENT = "–"
HEADS = [  # of a table of results: title, and how its first click sorts
    ("recipe", "ascending"),
    ("run", "ascending"),
    *(
        (f"{way} {key}", order)
        for way in WAYS
        for key, order in (
            ("R@1", "descending"),
            ("95 %", "descending"),
            ("R@5", "descending"),
            ("R@10", "descending"),
            ("MdR", "ascending"),
            ("MnR", "ascending"),
        )
    ),
    ("rsum", "descending"),
    ("seeds", "descending"),
    ("training, s", "ascending"),
    ("memory, MB", "ascending"),
    ("parameters", "ascending"),
    ("epoch kept", "ascending"),
    ("device", "ascending"),
    ("run cards", ""),
    ("notebooks", ""),
]


@dataclass(frozen=True)
class Cell:
    """What a table shows in one place.

    Attributes:
        parts: (text, link or None), shown one after the other.
        value: what the column is sorted by, None where there is nothing.
    """

    parts: list[tuple[str, str | None]]
    value: float | str | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under heads.

    Attributes:
        label: what all rows share.
        heads: (title, how the first click sorts: "ascending", "descending" or "" for not at all).
        rows: as many cells as heads each.
    """

    label: str
    heads: list[tuple[str, str]]
    rows: list[list[Cell]]


#  ------------------------------------------------------------------------------------------------


def protocol_of(run: runs.Run) -> str:
    """What two runs must share to stand in one table.

    Data set or protocol, preset, split, language, tie rule, and a hash over the settings a generated set was made
    with, the split's ids, counts and captions, and the videos that were missing. Whatever keeps a result from being
    compared with published ones is said in words.
    """
    data, metrics = run.card["data"], run.metrics
    split, language, made_from = metrics["split"], metrics["language"], data.get("made_from")
    captions = (
        data.get("captions_hash", {}).get(split, {}).get(language)
    )  # none in sets of earlier versions
    content = [
        made_from,
        data["counts"][split],
        data["split_hash"][split],
        captions,
        metrics["missing"],
    ]
    parts = [data["protocol"] + (f" {made_from['preset']}" if made_from else ""), split, language]
    content_hash = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    parts += [f"ties {metrics['ties']}", f"content {content_hash}"]
    if data.get("partial"):
        parts.append("NOT COMPARABLE: prepared with --allow-partial")
    if metrics["missing"]:
        parts.append(f"NOT COMPARABLE: {len(metrics['missing'])} videos missing")
    return " · ".join(parts)


def comparable(run: str, first: runs.Run, seeds: Sequence[int]) -> dict[str, list[runs.Run]]:
    """Recipe -> its runs of these seeds, of all recipes in reports/<run>/ that have them all and
    share the protocol of the run `first`."""
    by_recipe: dict[str, dict[int, runs.Run]] = {}
    for each in runs.find(run):
        by_recipe.setdefault(each.recipe, {})[each.seed] = each
    protocol = protocol_of(first)
    return {
        recipe: [by_seed[seed] for seed in seeds]
        for recipe, by_seed in by_recipe.items()
        if set(seeds) <= set(by_seed) and protocol_of(by_seed[seeds[0]]) == protocol
    }


def results(found: Sequence[runs.Run]) -> pd.DataFrame:
    """One row per recipe of each run folder, best first.

    Columns: `name` (run folder), recipe, selection, runs (its seeds, by seed); for both directions the mean over seeds
    of each metric ("t2v R@1"), "t2v deviation" (sample standard deviation of R@1 over seeds, NaN for one), "t2v low"
    and "t2v high" (95 % interval of R@1: test videos resampled, all seeds pooled); rsum and its deviation; seconds
    (training, mean), memory (MB, largest), parameters, device.

    Raises:
        ValueError: the runs are of several protocols.
    """
    protocols = sorted({protocol_of(run) for run in found})
    if len(protocols) > 1:
        raise ValueError(f"expected runs of one protocol in a table, got {'; '.join(protocols)}")
    groups: dict[tuple, list[runs.Run]] = {}
    for run in sorted(found, key=lambda run: run.seed):
        groups.setdefault((_name(run), run.recipe, run.card["selection"]), []).append(run)
    rows = [_row(*key, seeds) for key, seeds in sorted(groups.items())]
    return pd.DataFrame(rows).sort_values(
        "t2v R@1", ascending=False, kind="stable", ignore_index=True
    )


def _row(name: str, recipe: str, selection: str, seeds: list[runs.Run]) -> dict:
    row = {"name": name, "recipe": recipe, "selection": selection, "runs": seeds}
    for way in WAYS:
        row |= {
            f"{way} {key}": float(np.mean([run.metrics[f"{way} {key}"] for run in seeds]))
            for key in MEANS
        }
        row[f"{way} deviation"] = statistics.mean_and_deviation(
            [run.metrics[f"{way} R@1"] for run in seeds]
        )[1]
        row[f"{way} low"], row[f"{way} high"] = _interval(seeds, way)
    row["rsum"], row["rsum deviation"] = statistics.mean_and_deviation(
        [run.metrics["rsum"] for run in seeds]
    )
    cards = [run.card for run in seeds]
    row |= {
        "seconds": float(np.mean([card["train_seconds"] for card in cards])),
        "parameters": cards[0]["parameters"],
    }
    memory, devices = (
        max(card["peak_memory_mb"] for card in cards),
        dict.fromkeys(card["device"] for card in cards),
    )
    return row | {"memory": memory, "device": ", ".join(devices)}


def _interval(seeds: list[runs.Run], way: str) -> list[float]:
    if len(seeds) == 1:
        return [seeds[0].metrics[f"{way} R@1 {end}"] for end in ("low", "high")]
    return statistics.interval(statistics.bootstrap_metrics(*compare.pooled(seeds, way))["R@1"])


def sections(run: str) -> dict[str, list[runs.Run]]:
    """The finished runs below reports/<run>/: its own under "", sub-runs under "released" or "ablations/<sweep>"."""
    root = files.run(run)
    found: dict[str, list[runs.Run]] = {}
    for card in sorted(root.rglob("seed*/run.json")):
        inner = card.parents[2].relative_to(root).parts
        found.setdefault("/".join(inner[:2]), []).append(runs.Run(card.parent))
    return dict(sorted(found.items()))


def run_names() -> list[str]:
    """The folders of reports/ that hold a finished run.

    Raises:
        FileNotFoundError: there is no reports/.
    """
    root = files.home() / "reports"
    if not root.is_dir():
        raise FileNotFoundError("no reports/ yet: run `tvrkit reproduce` or `tvrkit train` first")
    return [
        folder.name
        for folder in sorted(root.iterdir())
        if folder.is_dir() and sections(folder.name)
    ]


def diagnostics(found: Sequence[runs.Run]) -> dict[str, dict[str, dict]]:
    """{number's title: {recipe and seed: {"mean", "low", "high"}}} of what notebooks 04 and 05 wrote for these runs."""
    table: dict[str, dict[str, dict]] = {}
    for run in found:
        for file in sorted(run.folder.glob("diagnostics_*.json")):
            for title, number in json.loads(file.read_text(encoding="utf-8")).items():
                table.setdefault(title, {})[f"{run.recipe}, seed {run.seed}"] = number
    return table


#  ------------------------------------------------------------------------------------------------


def _name(run: runs.Run) -> str:
    return run.folder.parents[1].relative_to(files.home() / "reports").as_posix()


def _tables(found: Sequence[runs.Run], page: Path, section: str = "") -> list[Table]:
    """A table per protocol of the runs in `section`, for a page in the folder `page`."""
    groups: dict[str, list[runs.Run]] = {}
    for run in found:
        groups.setdefault(protocol_of(run), []).append(run)
    return [
        Table(
            protocol, HEADS, [_cells(row, page, section) for row in results(of).to_dict("records")]
        )
        for protocol, of in sorted(groups.items())
    ]


def _cells(row: dict, page: Path, section: str) -> list[Cell]:
    """One row under `HEADS`; what a sub-run's folders say beyond the section stands beside the recipe."""
    run, _, inner = row["name"].partition("/")
    variant = inner.removeprefix(section).strip("/")
    index = files.run(run) / "index.html"
    cells = [
        _text(f"{row['recipe']} · {variant}" if variant else row["recipe"]),
        Cell([(run, _link(index, page) if index.exists() else None)], run),
    ]
    for way in WAYS:
        bounds = f"[{row[f'{way} low']:.1f}, {row[f'{way} high']:.1f}]"
        recall, *others = (row[f"{way} {key}"] for key in MEANS)
        cells += [
            _number(recall, 1, row[f"{way} deviation"]),
            Cell([(bounds, None)], row[f"{way} low"]),
        ]
        cells += [_number(value, 1) for value in others]
    cards = [(f"seed {one.seed}", _link(one.folder / "run.json", page)) for one in row["runs"]]
    executed = [
        file for one in row["runs"] for file in sorted(one.folder.glob("[0-9][0-9]_*.html"))
    ]
    return [
        *cells,
        _number(row["rsum"], 1, row["rsum deviation"]),
        _number(len(row["runs"]), 0),
        *(_number(row[key], 0) for key in ("seconds", "memory", "parameters")),
        _text(row["selection"]),
        _text(row["device"]),
        Cell(cards, None),
        Cell([(file.stem[:2], _link(file, page)) for file in executed] or [(ABSENT, None)], None),
    ]


def _text(text: str) -> Cell:
    return Cell([(text, None)], text)


def _number(value: float, digits: int, spread: float = math.nan) -> Cell:
    return Cell(
        [
            (
                f"{value:,.{digits}f}" + ("" if math.isnan(spread) else f" ± {spread:.{digits}f}"),
                None,
            )
        ],
        value,
    )


def _link(target: Path, page: Path) -> str:
    return quote(os.path.relpath(target, page).replace(os.sep, "/"))


def _diagnostics_table(found: Sequence[runs.Run]) -> Table | None:
    numbers = diagnostics(found)
    columns = sorted({column for of in numbers.values() for column in of})
    rows = [
        [_text(title), *(_diagnostic(of.get(column), of) for column in columns)]
        for title, of in numbers.items()
    ]
    heads = [("number", "ascending"), *((column, "descending") for column in columns)]
    return Table("Diagnostics", heads, rows) if rows else None


def _diagnostic(number: dict | None, row: dict[str, dict]) -> Cell:
    """One entry; digits by the largest mean of its row: shares and areas up to 1 get three, percentages one."""
    if number is None or not _known(number["mean"]):
        return Cell([(ABSENT, None)], None)
    digits = (
        3 if max(abs(each["mean"]) for each in row.values() if _known(each["mean"])) <= 1 else 1
    )
    text = f"{number['mean']:.{digits}f}"
    if _known(number["low"]) and _known(number["high"]):
        text += f" [{number['low']:.{digits}f}, {number['high']:.{digits}f}]"
    return Cell([(text, None)], number["mean"])


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


#  ------------------------------------------------------------------------------------------------


def write_index(run: str) -> Path:
    """Write reports/<run>/index.html: results, diagnostics, sub-runs, every notebook, its figures and the run cards.

    Raises:
        ValueError: nothing below reports/<run> is finished.
    """
    root, found = files.run(run), sections(run)
    if not found:
        raise ValueError(f"reports/{run} has no finished recipe: run `tvrkit reproduce` first")
    main = found.pop("", [])
    page = _template("run.html").render(
        run=run,
        absent=ABSENT,
        unfinished=_unfinished(root),
        tables=_tables(main, root),
        diagnostics=_diagnostics_table(main),
        sections={name: _tables(of, root, name) for name, of in found.items()},
        notebooks=_by_notebook(root, "*.html"),
        figures=_by_notebook(root, "figures/*.png"),
    )
    files.write_text(root / "index.html", page)
    return root / "index.html"


def write_leaderboard() -> Path:
    """Write reports/README.md and reports/index.html: all runs, one table per protocol, then their sub-runs."""
    root = files.home() / "reports"
    found = {name: sections(name) for name in run_names()}
    main = [run for of in found.values() for run in of.pop("", [])]
    inner = {
        f"{name}/{part}": _tables(of, root, part)
        for name, parts in found.items()
        for part, of in parts.items()
    }
    for template, target in (("leaderboard.md", "README.md"), ("leaderboard.html", "index.html")):
        text = _template(template).render(tables=_tables(main, root), sections=inner)
        files.write_text(root / target, text)
    return root / "README.md"


def _unfinished(root: Path) -> list[str]:
    begun = sorted(config.parent for config in root.rglob("seed*/config.yaml"))
    return [
        folder.relative_to(root).as_posix()
        for folder in begun
        if not (folder / "run.json").exists()
    ]


def _by_notebook(root: Path, pattern: str) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """{notebook: {recipe, or "" for the run's own: [(label, link)]}} of the files that notebooks left.

    A figure's label is its name, a page's the seed it was made with. Files begin with their notebook's number.
    """
    pages = {page.stem[:2]: page.stem for page in sorted(root.rglob("[0-9][0-9]_*.html"))}
    found: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for file in sorted(
        [*root.glob(pattern), *root.glob(f"*/seed*/{pattern}")], key=lambda f: (f.stem[:2], str(f))
    ):
        if not re.match(r"\d\d_", file.stem):
            continue
        recipe, _, seed = file.relative_to(root).as_posix().partition("/seed")
        recipe, seed = (recipe, f"seed {seed.split('/')[0]}") if seed else ("", "")
        label = (
            (seed or "open")
            if file.suffix == ".html"
            else " · ".join(filter(None, [_title(file), seed]))
        )
        notebook = found.setdefault(_title(pages.get(file.stem[:2], file.stem[:2])), {})
        notebook.setdefault(recipe, []).append((label, _link(file, root)))
    return found


def _title(file: Path | str) -> str:
    return Path(file).stem.replace("_", " ")


def _markdown(text: str) -> str:
    """Text as itself within a Markdown table."""
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", text.replace("\n", " "))


def _template(name: str) -> jinja2.Template:
    loader, autoescape = jinja2.FileSystemLoader(files.ASSETS), jinja2.select_autoescape(["html"])
    environment = jinja2.Environment(
        loader=loader,
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = _markdown
    return environment.get_template(name)
