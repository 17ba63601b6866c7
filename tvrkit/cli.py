"""The command line: thin commands over the package. Imports are inside, so that `--help` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, help=__doc__.splitlines()[0], pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Prepare, check and look at data sets.")
backbone_app = typer.Typer(no_args_is_help=True, help="The embedded tiny CLIP.")
app.add_typer(data_app, name="data")
app.add_typer(backbone_app, name="backbone")
console = Console()

Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, the value in YAML")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:k")]
ProfileName = Annotated[str | None, typer.Option("--profile", help="smoke, quick or full")]


@app.command()
def reproduce(
    profile: Annotated[str, typer.Option(help="smoke, quick or full")] = "quick",
    run: Annotated[str | None, typer.Option(help="folder under reports/; the profile's name if not given")] = None,
    device: Device = "cpu",
    force: Annotated[bool, typer.Option("--force", help="remove the run and start again")] = False,
):
    """Run the numbered notebooks of a profile into reports/RUN/. What is finished is skipped."""
    from tvrkit.reproduce import reproduce as run_notebooks

    console.print(f"open {run_notebooks(profile, run or profile, device, force)}", soft_wrap=True)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="name of a recipe, or path of a YAML file")],
    overrides: Overrides = None,
    run: Annotated[str, typer.Option(help="folder under reports/")] = "cli",
    seed: int = 0,
    device: Device = "cpu",
    profile: ProfileName = None,
):
    """Train and evaluate one recipe into reports/RUN/RECIPE/seedK/. An interrupted run continues."""
    from tvrkit import runs

    done = runs.ensure(recipe, profile=profile, overrides=overrides or (), run=run, seed=seed, device=device)
    for way in ("t2v", "v2t"):
        scores = done.evaluation.metrics[way]
        console.print(way, "  ".join(f"{name} {value:.1f}" for name, value in scores.items()), highlight=False)
    console.print(done.folder, soft_wrap=True)


@app.command()
def recipes():
    """List the recipes, each with the first line of its header."""
    from tvrkit import paths
    from tvrkit.config import recipe_names

    for name in recipe_names():
        header = (paths.RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        console.print(f"[bold]{name}[/bold]  {header}", highlight=False)


@app.command()
def report():
    """Rebuild reports/README.md, reports/index.html and every run's index.html from the run folders."""
    from tvrkit import paths, report, runs

    for folder in sorted((paths.home() / "reports").iterdir()):
        if folder.is_dir() and runs.find(folder.name):
            console.print(report.write_index(folder.name), soft_wrap=True)
    console.print(report.write_leaderboard(), soft_wrap=True)


@backbone_app.command("pretrain")
def backbone_pretrain(
    out: Annotated[Path, typer.Argument(help="folder for weights, merges, config and run card")],
    seed: int = 0,
):
    """Pre-train the embedded tiny CLIP on still frames and still captions (minutes on 2 cores)."""
    from tvrkit import tiny

    tiny.pretrain(out, seed=seed)


def main() -> None:
    """Run the command line; an expected error is one line on stderr, Ctrl-C says how to go on."""
    # Kernels and loader workers get the interrupt as well: nothing below may swallow it.
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted; what is finished is kept: run the same command again to continue", 130))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(_complain(f"error: {error}", 1))


def _complain(message: str, code: int) -> int:
    Console(stderr=True).print(message, soft_wrap=True, highlight=False, markup=False)
    return code
