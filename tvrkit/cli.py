"""The command line: thin commands over the package. Imports are inside, so that `--help` is
quick."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True, help=__doc__.splitlines()[0], pretty_exceptions_enable=False
)
data_app = typer.Typer(no_args_is_help=True, help="Prepare, check and look at data sets.")
backbone_app = typer.Typer(no_args_is_help=True, help="The embedded tiny CLIP.")
app.add_typer(data_app, name="data")
app.add_typer(backbone_app, name="backbone")
console = Console()
INTERRUPTED = 130

Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, the value in YAML")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:k")]
DataName = Annotated[str, typer.Argument(help="data set (msrvtt) or protocol (msrvtt/full)")]
Language = Annotated[str | None, typer.Option(help="en or zh; the protocol's own if not given")]
OnlySplits = Annotated[list[str] | None, typer.Option(help="only this split; may be repeated")]
AllowPartial = Annotated[
    bool, typer.Option("--allow-partial", help="go on when counts differ, and label the result")
]
ProfileName = Annotated[
    str | None, typer.Option("--profile", help="smoke, quick, reference or full")
]


@app.command()
def reproduce(
    profile: Annotated[str, typer.Option(help="smoke, quick, reference or full")] = "quick",
    run: Annotated[
        str | None, typer.Option(help="folder under reports/; the profile's name if not given")
    ] = None,
    device: Device = "cpu",
    force: Annotated[bool, typer.Option("--force", help="remove the run and start again")] = False,
):
    """Run the numbered notebooks of a profile into reports/RUN/. What is finished is skipped."""
    from tvrkit.reporting.notebooks import reproduce as run_notebooks

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
    """Train and evaluate one recipe into reports/RUN/RECIPE/seedK/. An interrupted run
    continues."""
    from tvrkit.evaluation.compare import METRICS
    from tvrkit.evaluation.ranks import DIRECTIONS
    from tvrkit.training import runs

    done = runs.ensure(
        recipe, profile=profile, overrides=overrides or (), run=run, seed=seed, device=device
    )
    for direction in DIRECTIONS:
        numbers = [f"{name} {done.metrics[f'{direction} {name}']:.1f}" for name in METRICS]
        console.print(direction, "  ".join(numbers), highlight=False)
    console.print(done.folder, soft_wrap=True)


@app.command()
def sweep(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="sweeps of recipes/sweeps.yaml, or all; none lists them"),
    ] = None,
    jobs: Annotated[int, typer.Option(help="runs at a time; they share the cores")] = 1,
    run: Annotated[str, typer.Option(help="folder under reports/")] = "cli",
    profile: ProfileName = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="in place of the sweep's own; may be repeated")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="only this one; may be repeated")
    ] = None,
    device: Device = "cpu",
):
    """Train and evaluate the variants of ablations into reports/RUN/ablations/. What is finished is
    skipped."""
    from tvrkit.reporting import sweeps as sweep

    sweeps = sweep.load_all()
    chosen = list(sweeps) if names == ["all"] else names or []
    for name in sweeps if not chosen else ():
        tasks = sweep.plan(name, run=run, profile=profile, seeds=seed or ())
        done = sum(task.finished for task in tasks)
        console.print(
            f"[bold]{name}[/bold]  {done} of {len(tasks)} runs  {sweeps[name].question}",
            highlight=False,
        )
    options = {"run": run, "profile": profile, "seeds": seed or (), "variants": variant or ()}
    tasks = [task for name in chosen for task in sweep.plan(name, **options)]
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # as Ctrl-C: the runs end with this process
    failed = sweep.execute(tasks, jobs=jobs, device=device) if tasks else {}
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(tasks)} runs failed: {'; '.join(failed)}")


@app.command()
def recipes():
    """List the recipes, each with its header: paper, data set, target and where that was read."""
    from tvrkit import files
    from tvrkit.recipes import recipe_names

    for name in recipe_names():
        lines = (files.RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        header = [line.lstrip("# ") for line in lines if line.startswith("#")]
        console.print(f"[bold]{name}[/bold]", *header, sep="\n  ", highlight=False, soft_wrap=True)


@app.command()
def report():
    """Rebuild reports/README.md, reports/index.html and every run's index.html from the run
    folders."""
    from tvrkit.reporting import pages as report

    for name in report.run_names():
        console.print(report.write_index(name), soft_wrap=True)
    console.print(report.write_leaderboard(), soft_wrap=True)


@app.command()
def convert(
    method: Annotated[str, typer.Argument(help="glscl or hmmc")],
    source: Annotated[
        list[Path], typer.Argument(help="released checkpoint: one file, or all of its shards")
    ],
    out: Annotated[Path, typer.Option(help="safetensors file to write")],
):
    """Rewrite a released GLSCL or HMMC checkpoint as one of the kit's."""
    from tvrkit.models import checkpoints

    console.print(f"{out}  SHA-256 {checkpoints.convert(method, source, out)}", soft_wrap=True)


@data_app.command("list")
def data_list():
    """Data sets and their protocols."""
    from tvrkit.data.annotations import DATASETS

    for name, dataset in DATASETS.items():
        console.print(f"[bold]{name}[/bold]  {', '.join(dataset.protocols)}", highlight=False)


@data_app.command("check")
def data_check(
    name: DataName,
    root: Annotated[Path, typer.Argument(help="folder of the annotation files")],
    language: Language = None,
    split: OnlySplits = None,
    allow_partial: AllowPartial = False,
):
    """Compare annotation files with their protocol: counts, id hashes, overlaps, shared sources."""
    from tvrkit.data.annotations import load_annotations, resolve
    from tvrkit.data.splits import check_splits

    dataset, protocol = resolve(name)
    captions = load_annotations(dataset, root, protocol, language, split)
    print(check_splits(captions, protocol, allow_partial))


@data_app.command("prepare")
def data_prepare(
    name: DataName,
    root: Annotated[
        Path | None, typer.Argument(help="folder of the annotation files; not for shapes")
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(help="any tree of video files, or an LMDB frame store; not for shapes"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="data/NAME, or data/shapes-quick, if not given")
    ] = None,
    language: Language = None,
    split: OnlySplits = None,
    frames: Annotated[int | None, typer.Option(help="kept per video")] = None,
    allow_partial: AllowPartial = False,
    workers: int = 2,
):
    """Read annotations, extract videos, write the folder that recipes name. Called again it goes
    on."""
    from tvrkit import files
    from tvrkit.data import prepare
    from tvrkit.data.annotations import resolve
    from tvrkit.data.manifest import coverage

    if name.startswith("shapes"):
        made = prepare.prepare_shapes(
            out or files.data("shapes-quick" if name == "shapes" else name), workers=workers
        )
    else:
        resolve(name)
        if root is None or videos is None:
            raise ValueError(
                f"data prepare {name}: expected the folder of its annotations and --videos FOLDER"
            )
        made, report = prepare.prepare(
            name,
            root,
            videos,
            out or files.data(name.replace("/", "-")),
            language=language,
            splits=split,
            frames=frames,
            allow_partial=allow_partial,
            workers=workers,
        )
        print(report)
    for row in coverage(made.videos).to_dict("records"):
        lost = {kind: ids for kind, ids in row.items() if isinstance(ids, list) and ids}
        console.print(
            f"{row['split']}: {row['present']} of {row['videos']} videos", highlight=False
        )
        for kind, ids in lost.items():
            console.print(
                f"  {kind.replace('_', ' ')} {len(ids)}: {', '.join(ids)}",
                highlight=False,
                soft_wrap=True,
            )
    console.print(made.root, soft_wrap=True)


@data_app.command("extract")
def data_extract(
    folder: Annotated[Path, typer.Argument(help="any tree of video files")],
    out: Annotated[Path, typer.Option(help="folder for frames.lmdb and videos.jsonl")],
    frames: Annotated[int, typer.Option(help="kept per video")] = 12,
    workers: int = 2,
):
    """Decode every file of a folder into a frame store; videos.jsonl says what became of each."""
    from tvrkit.data.prepare import extract_folder

    rows = extract_folder(folder, out, frames=frames, workers=workers)
    for row in rows[rows["status"] != "ok"].to_dict("records"):
        console.print(
            f"failed {row['file']}: {row['reason']}", highlight=False, markup=False, soft_wrap=True
        )
    console.print(
        f"{(rows['status'] == 'ok').sum()} of {len(rows)} files in {out}",
        highlight=False,
        soft_wrap=True,
    )


@data_app.command("verify")
def data_verify(root: Annotated[Path, typer.Argument(help="prepared data set, or a frame store")]):
    """Read every stored frame; exit 1 with a line for each that is broken."""
    from tvrkit.data.store import FrameStore

    store = root / "frames.lmdb" if (root / "frames.lmdb").exists() else root
    problems = FrameStore(store).verify()
    if problems:
        raise ValueError(f"{store}: {len(problems)} problems: {'; '.join(problems)}")
    console.print(
        f"{store}: {len(FrameStore(store).video_ids())} videos, every frame reads", soft_wrap=True
    )


@data_app.command("show")
def data_show(
    video_id: str,
    data: Annotated[str, typer.Option(help="prepared data set under data/")] = "shapes-quick",
    out: Annotated[
        Path | None, typer.Option(help="write the film strip here; VIDEO_ID.png if not given")
    ] = None,
):
    """Print a video's row and captions and draw its film strip."""
    from tvrkit import figures, files
    from tvrkit.data.manifest import Manifest
    from tvrkit.settings import choose

    manifest = Manifest.open(files.data(data))
    row = manifest.videos.set_index("video_id").loc[
        choose("video", video_id, set(manifest.videos["video_id"]))
    ]
    console.print(row.to_string(), highlight=False)
    captions = manifest.captions[manifest.captions["video_id"] == video_id]["caption"].tolist()
    console.print("\n".join(captions), highlight=False, markup=False)
    frames = manifest.frames.read(video_id, range(manifest.frames.count(video_id)))
    target = out or Path(f"{video_id}.png")
    figures.film_strip(frames, captions[0] if captions else video_id).savefig(target)
    console.print(target, soft_wrap=True)


@backbone_app.command("pretrain")
def backbone_pretrain(
    out: Annotated[Path, typer.Argument(help="folder for weights, merges, config and run card")],
    seed: int = 0,
):
    """Pre-train the embedded tiny CLIP on still frames and still captions (minutes on 2 cores)."""
    from tvrkit.training import stills as tiny

    tiny.pretrain(out, seed=seed)


def main() -> None:
    """Run the command line; an expected error is one line on stderr, Ctrl-C says how to go on."""
    try:
        app()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # Typer turns Ctrl-C into this exit code
            _complain(
                "interrupted; what is finished is kept: run the same command again to continue",
                stop.code,
            )
        raise
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(_complain(f"error: {error}", 1))


def _complain(message: str, code: int) -> int:
    Console(stderr=True).print(message, soft_wrap=True, highlight=False, markup=False)
    return code


if __name__ == "__main__":
    main()
