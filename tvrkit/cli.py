"""Text-video retrieval you can re-run, compare and look into."""

# Imports are inside the commands, so that `--help` is quick.
from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer import Argument, Option

from tvrkit.files import on_one_line, printable

if TYPE_CHECKING:
    from tvrkit.data.manifest import Manifest
    from tvrkit.training.runs import Run

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
data_app = typer.Typer(help="Prepare, check and look at data sets.", no_args_is_help=True)
report_app = typer.Typer(help="Pages of runs.", invoke_without_command=True)
bench_app = typer.Typer(help="Measure what a training step costs.", no_args_is_help=True)
backbone_app = typer.Typer(help="The embedded tiny CLIP.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(report_app, name="report")
app.add_typer(backbone_app, name="backbone")
app.add_typer(bench_app, name="bench")
INTERRUPTED = 130
LISTED = 10  # ids printed of those that are missing
IGNORED = {"own": ["split", "allow_partial"]}  # by `data prepare`, which refuses them
IGNORED["shapes"] = ["root", "videos", "language", "frames", "decoder", *IGNORED["own"]]

Recipe = Annotated[str, Argument(help="name of a recipe, or path of a YAML file")]
Overrides = Annotated[list[str] | None, Argument(help="section.key=value, the value in YAML")]
FINISHED = "RUN/RECIPE/seedK of a finished run, its folder, or OWNER/NAME on the hub"
RunName = Annotated[str, Option(help="folder under reports/")]
Device = Annotated[str, Option(help="cpu, cuda or cuda:k")]
ProfileName = Annotated[str | None, Option("--profile", help="smoke, quick, reference or full")]
DryRun = Annotated[bool, Option("--dry-run", help="say what would be done, and stop")]
DataName = Annotated[str, Argument(help="data set (msrvtt) or protocol (msrvtt/full)")]
Language = Annotated[str | None, Option(help="en or zh; the protocol's own if not given")]
OnlySplits = Annotated[list[str] | None, Option(help="only this split; may be repeated")]
Partial = Annotated[bool, Option("--allow-partial", help="go on when counts differ, and label it")]
Frames = Annotated[int | None, Option(min=1, help="kept per video; 12 as a rule")]
Decoder = Annotated[str | None, Option(help="auto (decord where it is right), decord or pyav")]


def _version(wanted: bool) -> None:
    if wanted:
        from tvrkit import __version__

        print(f"tvrkit {__version__}")
        raise typer.Exit


@app.callback()
def tvrkit(
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Text-video retrieval you can re-run, compare and look into."""


@app.command()
def reproduce(
    profile: Annotated[str, Option(help="smoke, quick, reference, full, or a data set")] = "quick",
    run: Annotated[str | None, Option(help="under reports/; else the profile's name")] = None,
    device: Device = "cpu",
    force: Annotated[bool, Option("--force", help="remove the run and start again")] = False,
    dry_run: DryRun = False,
    overrides: Overrides = None,
):
    """Run the numbered notebooks of a profile into reports/RUN/. What is finished is skipped."""
    from tvrkit.reporting import notebooks

    if dry_run:
        tasks = notebooks.plan(profile, run or profile, device, overrides or ())
        print(*notebooks.due(tasks), sep="\n")
    else:
        print("open", notebooks.reproduce(profile, run or profile, device, force, overrides or ()))


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    run: RunName = "cli",
    seed: int = 0,
    device: Device = "cpu",
    profile: ProfileName = None,
    dry_run: DryRun = False,
):
    """Train and evaluate one recipe into reports/RUN/RECIPE/seedK/. An interrupted run goes on.

    On several GPUs: torchrun --nproc_per_node=8 -m -- tvrkit train RECIPE --device cuda"""
    if dry_run:
        import yaml

        from tvrkit.recipes import load_recipe, to_dict
        from tvrkit.training import bench

        config = load_recipe(recipe, overrides or (), profile)
        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
        parts = bench.needs(config)
        listed = ", ".join(f"{name} {size:.1f}" for name, size in parts.items())
        print(f"# about {sum(parts.values()):.1f} GB of memory a process: {listed}")
        return
    from tvrkit.training import runs

    options: dict[str, Any] = {"profile": profile, "run": run, "seed": seed, "device": device}
    _print_numbers(runs.ensure(recipe, overrides=overrides or (), **options))


@app.command()
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    checkpoint: Annotated[
        str | None, Option(help="file of the kit or of released code, or a run; else zero-shot")
    ] = None,
    features: Annotated[Path | None, Option(help="folder of `embed`, of this backbone")] = None,
    split: Annotated[str | None, Option(help="in place of the recipe's")] = None,
    run: RunName = "cli",
    seed: int = 0,
    device: Device = "cpu",
    profile: ProfileName = None,
):
    """Score weights as they are, without training, into reports/RUN/RECIPE/seedK/."""
    from tvrkit.training.given_weights import evaluate

    options: dict[str, Any] = {"profile": profile, "run": run, "seed": seed, "device": device}
    options |= {"features": features, "split": split, "overrides": overrides or ()}
    _print_numbers(evaluate(recipe, checkpoint, **options))


@app.command()
def embed(
    recipe: Recipe,
    out: Annotated[Path, Option(help="folder to write")],
    overrides: Overrides = None,
    split: OnlySplits = None,
    device: Device = "cpu",
    profile: ProfileName = None,
):
    """Write word, sentence and frame features of a recipe's backbone, for `--features`."""
    from tvrkit.training.given_weights import embed

    chosen: dict[str, Any] = {"overrides": overrides or (), "splits": split or ()}
    card = embed(recipe, out, device=device, profile=profile, **chosen)
    about = f"{card['width']} wide, weights {card['weights'][:12]}"
    print(out, ", ".join(card["splits"]), about, sep="  ")


@app.command()
def score(
    text: Annotated[str, Argument(help="what to look for")],
    clips: Annotated[list[Path], Argument(help="video files")],
    run: Annotated[str, Option(help=FINISHED)],
    device: Device = "cpu",
):
    """Score a text against video files, and show what the method looks at."""
    from tvrkit.training.score import score

    answer = score(text, clips, run, device=device)
    for column, path in enumerate(answer.videos):
        print(f"{path}  {answer.similarity[0, column]:.3f}")
        for name, whole in answer.maps.items():
            values = whole[0, column]
            if values.ndim != 1:
                print(f"  {name}: {' x '.join(map(str, values.shape))}, see `tvrkit.score`")
                continue
            labels = answer.words[0] if len(values) == len(answer.words[0]) else [""] * len(values)
            shown = [f"{word} {v:.2f}".strip() for word, v in zip(labels, values, strict=True)]
            kept = [each for each, word in zip(shown, labels, strict=True) if word] or shown
            print(f"  {name}: {', '.join(kept)}")


def _print_numbers(done: Run) -> None:
    """What kind of weights were scored, both directions' numbers, and the folder; the main process
    says it."""
    from tvrkit.data import processes
    from tvrkit.evaluation.compare import METRICS
    from tvrkit.evaluation.ranks import DIRECTIONS

    if processes.rank():
        return
    print(f"{done.recipe}, {done.metrics['split']} split, weights: {done.card['selection']}")
    for direction in DIRECTIONS:
        numbers = [f"{name} {done.metrics[f'{direction} {name}']:.1f}" for name in METRICS]
        print(direction, *numbers, sep="  ")
    print(done.folder)


@app.command()
def sweep(
    names: Annotated[list[str] | None, Argument(help="of recipes/sweeps.yaml, or all")] = None,
    jobs: Annotated[int, Option(min=1, help="at a time: a GPU each, or sharing the cores")] = 1,
    run: RunName = "cli",
    profile: ProfileName = None,
    seed: Annotated[list[int] | None, Option(help="in place of the sweep's; repeatable")] = None,
    variant: Annotated[list[str] | None, Option(help="only this one; may be repeated")] = None,
    device: Device = "cpu",
    dry_run: DryRun = False,
):
    """Run the variants of ablations into reports/RUN/ablations/; without a name, list them."""
    from tvrkit.reporting import sweeps

    known = sweeps.load_all()
    chosen = list(known) if not names or names == ["all"] else names
    tasks = {
        name: sweeps.plan(name, run=run, profile=profile, seeds=seed or (), variants=variant or ())
        for name in chosen
    }
    if dry_run or not names:
        for name, planned in tasks.items():
            done = sum(task.finished for task in planned)
            print(f"{name}  {done} of {len(planned)} runs  {known[name].question}")
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs end with this
    everything = [task for planned in tasks.values() for task in planned]
    if failed := sweeps.execute(everything, jobs=jobs, device=device):
        raise RuntimeError(f"{len(failed)} of {len(everything)} runs failed: {'; '.join(failed)}")


@app.command()
def recipes():
    """List the recipes, each with its header: paper, data set, target and where it was read."""
    from tvrkit import files
    from tvrkit.recipes import recipe_names

    for name in recipe_names():
        lines = (files.RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        print(name, *(line.lstrip("# ") for line in lines if line.startswith("#")), sep="\n  ")


@report_app.callback()
def report(context: typer.Context):
    """Write the pages of every run, and reports/index.html over all, from the run folders."""
    if context.invoked_subcommand:
        return
    from tvrkit.reporting import pages

    for name in pages.run_names():
        print(pages.write_index(name))
    print(pages.write_leaderboard())


@report_app.command("verify")
def report_verify(folder: Annotated[Path, Argument(help="a run, or a folder of runs")]):
    """Compare every file of every run with its run card; exit 1 with what is damaged."""
    from tvrkit.training import runs

    checked = runs.check_all(folder)
    damaged = [f"{run.folder}: {reason}" for run, reason in checked.items() if reason]
    if damaged or not checked:
        raise ValueError("; ".join(damaged) or f"{folder}: no finished run in it")
    print(f"{folder}: {len(checked)} runs, every file as it was written")


@report_app.command("trec")
def report_trec(
    run: Annotated[str, Argument(help=FINISHED)],
    out: Annotated[Path, Option(help="folder to write")],
):
    """Write a run's rankings as run and qrels files of TREC, for other evaluation tools."""
    from tvrkit.evaluation.export import write_trec
    from tvrkit.training.runs import opened

    write_trec(opened(run).evaluation, out, run)
    print(out)


@app.command()
def save(
    run: Annotated[str, Argument(help=FINISHED)],
    out: Annotated[Path, Argument(help="folder to write")],
    push: Annotated[str | None, Option(help="OWNER/NAME on the hub, to upload it to")] = None,
):
    """Write a trained method as a folder with its model card, for `--run` and `--checkpoint`."""
    from tvrkit.training import sharing

    print(sharing.save_pretrained(run, out))
    if push:
        print(sharing.push_to_hub(out, push))


@app.command()
def convert(
    method: Annotated[str, Argument(help="glscl, hmmc, dmae or clip4clip")],
    source: Annotated[list[Path], Argument(help="released checkpoint: one file, or its shards")],
    out: Annotated[Path, Option(help="safetensors file to write")],
):
    """Rewrite a released checkpoint as one of the kit's."""
    from tvrkit.models import checkpoints, official

    print(f"{out}  SHA-256 {checkpoints.save(official.load_official(method, source), out)}")


@app.command()
def index(
    folder: Annotated[Path, Argument(help="any tree of video files")],
    out: Annotated[str, Option(help="folder of the index, or address of an object store")],
    run: Annotated[str | None, Option(help=FINISHED)] = None,
    backbone: Annotated[str | None, Option(help="or an open_clip name")] = None,
    pretrained: Annotated[str | None, Option(help="its weights; random ones if not given")] = None,
    engine: Annotated[str, Option(help="local or ray")] = "local",
    seconds: Annotated[float, Option(help="of a segment of a long video")] = 10.0,
    watch: Annotated[float | None, Option(help="look again every so many seconds")] = None,
    workers: int = 2,
    device: Device = "cpu",
):
    """Index a folder of videos for `tvrkit search`; only what is new or has changed is read."""
    import time

    from tvrkit.search.encoder import Encoder
    from tvrkit.search.index import Index, opened

    model = (run, backbone, pretrained)
    if not (run or backbone) and opened(out) is not None:
        model = Index.open(out).card["model"]
    encoder = Encoder(*model, device=device)
    version = None
    while True:
        options: dict[str, Any] = {"engine": engine, "workers": workers, "retry": version is None}
        made = Index.build(folder, out, encoder, seconds=seconds, **options)
        if made.table.version != version:
            version = made.table.version
            for row in made.failures().itertuples():
                print(on_one_line(f"{row.status} {row.path}: {row.reason}"))
            count = made.table.count_rows("status = 'ok'")
            print(f"{count:,} segments of {len(made.files()):,} files in {out}", flush=True)
        if watch is None:
            return
        time.sleep(watch)


@app.command()
def search(
    place: Annotated[str, Argument(metavar="INDEX", help="what `tvrkit index` made")],
    query: Annotated[str | None, Argument(help="words; - reads one query a line")] = None,
    video: Annotated[Path | None, Option(help="a video as the query")] = None,
    image: Annotated[Path | None, Option(help="a picture as the query")] = None,
    k: Annotated[int, Option("-k", help="hits")] = 10,
    where: Annotated[str | None, Option(help="\"duration < 60 and path like '%holiday%'\"")] = None,
    min_score: Annotated[float, Option(help="leave out what scores less")] = -1.0,
    shortlist: Annotated[int, Option(help="segments that are scored exactly")] = 200,
    prompts: Annotated[str, Option(help="none, video or zh: wordings to average over")] = "none",
    as_json: Annotated[bool, Option("--json", help="one object a line for each query")] = False,
    html: Annotated[Path | None, Option(help="page to write")] = None,
    recall: Annotated[bool, Option("--recall", help="measure the short list instead")] = False,
):
    """Search an index by words, a video or a picture."""
    from tvrkit.files import write_text
    from tvrkit.search import query as queries
    from tvrkit.search.index import Index

    if sum(source is not None for source in (query, video, image)) != 1:
        raise ValueError("expected one query: words, --video FILE or --image FILE")
    index = Index.open(place)
    if file := video or image:
        asked = [index.encoder.file_query(file)]
    else:
        texts = sys.stdin.read().splitlines() if query == "-" else [str(query)]
        asked = [index.encoder.text_query(text, prompts) for text in texts]
    if recall:
        print(queries.shortlist_recall(asked, index.table, k).round(1).to_string(index=False))
        return
    answers = [index.search(each, k, where, shortlist) for each in asked]
    answers = [table[table["score"] >= min_score] for table in answers]
    for table in answers:
        for note in queries.notes(table):
            print(note, file=sys.stderr)
        print(queries.to_json(table) if as_json else queries.to_lines(table))
    if html:
        write_text(html, queries.render(answers))


@app.command("app")
def search_app(
    places: Annotated[list[str], Argument(metavar="INDEX...", help="what `tvrkit index` made")],
    host: Annotated[str, Option(help="0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: int = 7860,
):
    """A local page: search, play the hits, see why."""
    from tvrkit.search.app import serve

    serve(places, host, port)


@data_app.command("list")
def data_list():
    """Data sets and their protocols."""
    from tvrkit.data.annotations import DATASETS
    from tvrkit.data.splits import protocols

    for name in DATASETS:
        print(f"{name}  {', '.join(protocols(name))}")


@data_app.command("check")
def data_check(
    name: DataName,
    root: Annotated[Path, Argument(help="folder of the annotation files")],
    language: Language = None,
    split: OnlySplits = None,
    allow_partial: Partial = False,
):
    """Compare annotation files with their protocol: counts, id hashes, overlaps, shared sources."""
    from tvrkit.data.annotations import load_annotations, resolve
    from tvrkit.data.splits import check_splits

    dataset, protocol = resolve(name)
    captions = load_annotations(dataset, root, protocol, language, split)
    print(printable(str(check_splits(captions, protocol, allow_partial))))


def _join(context: typer.Context, workers: int) -> None:
    """Join a launch, if this is one of several processes: but for the main one they read videos for
    it, and that is all."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return
    import torch

    from tvrkit.data import shared_decoding
    from tvrkit.training import distributed

    distributed.start(torch.device("cpu"))
    context.call_on_close(shared_decoding.end)
    if shared_decoding.serves(workers):
        raise typer.Exit


@data_app.command("prepare")
def data_prepare(
    context: typer.Context,
    name: DataName,
    root: Annotated[Path | None, Argument(help="folder of annotations, or your table")] = None,
    videos: Annotated[Path | None, Option(help="tree of files, or an LMDB frame store")] = None,
    out: Annotated[Path | None, Option(help="data/NAME if not given")] = None,
    language: Language = None,
    split: OnlySplits = None,
    frames: Frames = None,
    decoder: Decoder = None,
    allow_partial: Partial = False,
    workers: int = 2,
):
    """Read annotations, extract videos, write the folder that recipes name; goes on if stopped."""
    from tvrkit import files
    from tvrkit.data.own import prepare_own
    from tvrkit.data.prepare import frame_settings, prepare
    from tvrkit.shapes.dataset import PREFIX, prepare_shapes

    if name == "shapes":
        name = out.name if out and out.name.startswith(PREFIX) else "shapes-quick"
    _join(context, workers)
    ignored = IGNORED.get(name.partition("-")[0], ())
    if given := [each.replace("_", "-") for each in ignored if context.params[each]]:
        raise ValueError(f"data prepare {name}: takes no {', '.join(given)}")
    out = out or files.data(name.replace("/", "-"))
    if name.startswith(PREFIX):
        made = prepare_shapes(out, name.removeprefix(PREFIX), workers=workers)
    elif root is None or videos is None:
        what = "a table of captions" if name == "own" else "the folder of its annotations"
        raise ValueError(f"data prepare {name}: expected {what} and --videos FOLDER")
    elif name == "own":
        settings = frame_settings(frames, decoder)
        made = prepare_own(root, videos, out, language or "en", settings=settings, workers=workers)
    else:
        options: dict[str, Any] = {"language": language, "splits": split, "frames": frames}
        options |= {"decoder": decoder, "allow_partial": allow_partial, "workers": workers}
        made, checked = prepare(name, root, videos, out, **options)
        print(printable(str(checked)))
    print_coverage(made)


def print_coverage(made: Manifest) -> None:
    """What is there of each split, some ids of what is not, and where else recipes look."""
    from tvrkit import files
    from tvrkit.data.manifest import coverage

    for row in coverage(made.videos).to_dict("records"):
        print(f"{row['split']}: {row['present']} of {row['videos']} videos")
        for kind in ("missing", "broken", "damaged", "too_short"):
            if ids := row[kind]:
                more = f" ... all of them in {made.root}/videos.jsonl" if len(ids) > LISTED else ""
                some = printable(", ".join(ids[:LISTED]))
                print(f"  {kind.replace('_', ' ')} {len(ids)}: {some}{more}")
    if made.root.resolve().parent != (home := files.home() / "data"):
        print(f"recipes look for data sets in {home}")


@data_app.command("extract")
def data_extract(
    context: typer.Context,
    folder: Annotated[Path, Argument(help="any tree of video files")],
    out: Annotated[Path, Option(help="folder for frames.lmdb and videos.jsonl")],
    frames: Frames = None,
    decoder: Decoder = None,
    workers: int = 2,
):
    """Decode every file of a folder into a frame store; videos.jsonl says what became of each."""
    from tvrkit.data.prepare import extract_folder

    _join(context, workers)
    rows = extract_folder(folder, out, frames=frames, decoder=decoder, workers=workers)
    failed = rows[rows["status"] != "ok"]
    for file, reason in zip(failed["file"], failed["reason"], strict=True):
        print(on_one_line(f"failed {file}: {reason}"))
    print(on_one_line(f"{len(rows) - len(failed)} of {len(rows)} files in {out}"))


@data_app.command("verify")
def data_verify(root: Annotated[Path, Argument(help="prepared data set, or a frame store")]):
    """Read every stored frame; exit 1 with a line for each that is broken."""
    from tvrkit.data.store import FrameStore

    store = root / "frames.lmdb" if (root / "frames.lmdb").exists() else root
    if problems := FrameStore(store).verify():
        raise ValueError(f"{store}: {len(problems)} problems: {'; '.join(problems)}")
    print(on_one_line(f"{store}: {len(FrameStore(store).video_ids())} videos, every frame reads"))


@bench_app.command("gpu")
def bench_gpu(
    out: Annotated[Path, Argument(help="JSON file to write")] = Path("gpu.json"),
    device: Device = "cuda",
):
    """Clips a second, memory and share of the card's own matrix rate: a step of each method in
    bf16, ViT-B/32, 128 clips of 12 frames."""
    from tvrkit.training import bench

    measured = bench.report(out, device)
    print(f"{measured['device']}: {measured['product_tflops']:.1f} TFLOP/s in a matrix product")
    for name, step in measured["steps"].items():
        numbers = [f"{key} {value:.3g}" for key, value in step.items() if key != "time_in"]
        print(name, *numbers, f"most time in {next(iter(step['time_in']))}", sep="  ")
    print(out)


@app.command()
def doctor(seconds: Annotated[float, Option(help="for which the speed is measured")] = 20.0):
    """Say, as JSON, what is here and works: devices, versions, weights, tagger, decoders, data,
    speed."""
    import json

    from tvrkit.training.doctor import examine

    findings = dict(examine(seconds))
    print(json.dumps(findings, ensure_ascii=False, indent=2))
    if failed := [name for name, finding in findings.items() if finding.startswith("FAILS")]:
        raise RuntimeError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}")


@backbone_app.command("pretrain")
def backbone_pretrain(
    out: Annotated[Path, Argument(help="folder for weights, merges, config and run card")],
    seed: int = 0,
):
    """Pre-train the embedded tiny CLIP on still frames and still captions (minutes on 2 cores)."""
    from tvrkit.training import tiny_backbone

    tiny_backbone.pretrain(out, seed=seed)


def main() -> None:
    """Run the command line; an expected error is one line on stderr, Ctrl-C says how to go on."""
    cast(Any, sys.stdout).reconfigure(errors="backslashreplace")  # names may be no text
    warnings.formatwarning = lambda message, *_: printable(f"warning: {message}\n")
    try:
        app()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # Typer turns Ctrl-C into this exit code
            again = "what is finished is kept: run the same command again to continue"
            print(f"interrupted; {again}", file=sys.stderr)
        raise
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise  # one of several processes: which, and where, the launcher shows
        file = isinstance(error, FileExistsError | NotADirectoryError) and error.filename
        said = f"{file}: expected a folder, got a file in its way" if file else str(error)
        print(f"error: {on_one_line(said)}", file=sys.stderr)
        sys.exit(1)
