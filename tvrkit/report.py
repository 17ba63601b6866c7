"""Pages made from run folders alone: `reports/<run>/index.html`, `reports/README.md` and `reports/index.html`."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pandas as pd

from tvrkit import paths, reproducibility, runs

COLUMNS = ("R@1", "R@5", "R@10", "MdR", "MnR")


def protocol_of(run: runs.Run) -> str:
    """What two runs must share to stand in one table: data set, protocol, split hash, split and language."""
    data = run.card["data"]
    complete = "" if run.metrics["complete"] else ", INCOMPLETE: not comparable"
    split = run.metrics["split"]
    return f"{data['protocol']} · {split} · {run.config.data.language} · {data['split_hash'][split][:12]}{complete}"


def results(found: list[runs.Run]) -> pd.DataFrame:
    """One row per recipe and direction: mean over seeds of every metric, and the 95 % interval of R@1.

    The interval is over queries for one seed, and mean +- standard deviation over seeds for several.
    """
    rows = []
    for run in found:
        for way in ("t2v", "v2t"):
            metrics = run.metrics
            low, high = metrics["interval"][way]["R@1"]
            rows.append({
                "protocol": protocol_of(run), "recipe": run.recipe, "direction": way, "seed": run.seed,
                "queries": metrics["queries"][way], **{c: metrics[way][c] for c in COLUMNS}, "low": low, "high": high,
                "selection": run.card["selection"], "seconds": run.card["train_seconds"],
            })  # fmt: skip
    table = pd.DataFrame(rows)
    grouped = table.groupby(["protocol", "recipe", "direction", "selection"], sort=False)
    mean = grouped[[*COLUMNS, "low", "high", "queries", "seconds"]].mean()
    mean["seeds"], mean["deviation"] = grouped.size(), grouped["R@1"].std()
    return mean.reset_index()


def spread(row) -> str:
    """How far R@1 can be trusted, in words of the table."""
    if row["seeds"] > 1:
        return f"± {row['deviation']:.1f} over {row['seeds']} seeds"
    return f"[{row['low']:.1f}, {row['high']:.1f}]"


def write_index(run: str) -> Path:
    """Write reports/<run>/index.html: the results, every notebook, the main figures and the run cards.

    Raises:
        ValueError: the run has no finished recipe.
    """
    root, found = paths.run(run), runs.find(run)
    if not found:
        raise ValueError(f"reports/{run} has no finished recipe: run `tvrkit reproduce` first")
    pages = sorted(root.rglob("*.html"), key=lambda page: (page.stem, str(page)))
    figures = sorted(root.glob("**/figures/*.png"), key=lambda figure: (figure.stem, str(figure)))
    page = _template("run.html").render(
        run=run, tables=_by_protocol(found), spread=spread, columns=COLUMNS,
        notebooks=[(p.stem, p.parent.relative_to(root).as_posix(), p.relative_to(root).as_posix())
                   for p in pages if p.name != "index.html"],
        figures=[(f.stem.replace("_", " "), f.parent.parent.relative_to(root).as_posix(),
                  f.relative_to(root).as_posix()) for f in figures],
        runs=[(r.recipe, r.seed, r.card, r.folder.relative_to(root).as_posix()) for r in found],
    )  # fmt: skip
    reproducibility.write_text(root / "index.html", page)
    return root / "index.html"


def write_leaderboard() -> Path:
    """Write reports/README.md and reports/index.html from every run folder, one table per protocol."""
    root = paths.home() / "reports"
    names = sorted(folder.name for folder in root.iterdir() if (folder / "index.html").exists())
    found = {name: runs.find(name) for name in names}
    tables = {name: _by_protocol(of_run) for name, of_run in found.items() if of_run}
    for template, target in (("leaderboard.md", "README.md"), ("leaderboard.html", "index.html")):
        text = _template(template).render(tables=tables, columns=COLUMNS, spread=spread)
        reproducibility.write_text(root / target, text)
    return root / "README.md"


def _by_protocol(found: list[runs.Run]) -> dict[str, list[dict]]:
    table = results(found)
    return {name: rows.to_dict("records") for name, rows in table.groupby("protocol", sort=False)}


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(paths.ASSETS)
    autoescape = jinja2.select_autoescape(["html"])
    return jinja2.Environment(loader=loader, autoescape=autoescape, trim_blocks=True, lstrip_blocks=True).get_template(
        name
    )
