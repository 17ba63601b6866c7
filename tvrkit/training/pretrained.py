"""Give and take: a finished run as a folder that stands for itself, here or on Hugging Face's hub.

The folder is the run less its log and its similarity matrix: config.yaml, checkpoint.safetensors
(weights, with method, backbone, tokenizer and preprocessing), metrics.json and ranks.npz, run.json
with the hash of each, and README.md, its model card. Whoever takes it counts its numbers again.
"""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, create_repo, upload_folder

from tvrkit import files
from tvrkit.evaluation.compare import METRICS, with_interval
from tvrkit.evaluation.ranks import DIRECTIONS
from tvrkit.models.method import Method
from tvrkit.training.card import CHECKPOINT, GIVEN
from tvrkit.training.runs import Run, check_all, opened


def from_pretrained(name: Path | str, device: str = "cpu") -> Method:
    """The trained method of a run, in evaluation mode; its backbone's own weights are not needed.

    Args:
        name: see `runs.opened`: a folder of `save_pretrained`, a run, or a name on the hub.
        device: "cpu", "cuda" or "cuda:k".

    Raises:
        FileNotFoundError: no such run.
        ValueError: a file is not as it was written, or the weights do not fit.
    """
    return opened(name).method(device)


def save_pretrained(run: Run | Path | str, out: Path | str) -> Path:
    """Write a run's method as a folder that every command takes in place of a run.

    Args:
        run: a `Run`, or its name, see `runs.opened`.
        out: the folder; empty, or not there.

    Raises:
        FileNotFoundError: no such run, or it has no weights.
        FileExistsError: the folder holds something.
        ValueError: a file of the run is not as it was written.
    """
    given = run if isinstance(run, Run) else opened(run)
    given.artefact(CHECKPOINT)
    return _copy(given, Path(out), model_card(given))


def push_to_hub(folder: Path | str, name: str) -> str:
    """Upload a folder of `save_pretrained`; the hub's token is that of `hf auth login`.

    Args:
        name: "OWNER/NAME"; made where it is not there.

    Returns:
        Its address.

    Raises:
        RuntimeError: the hub refuses it, or can't be reached.
    """
    try:
        address = create_repo(name, exist_ok=True)
        upload_folder(repo_id=name, folder_path=folder, allow_patterns=[*GIVEN])
    except Exception as error:  # whatever the hub's client raises
        reason = " ".join(str(error).split())
        raise RuntimeError(f"{name}: not uploaded (`hf auth login`?): {reason:.300}") from None
    return str(address)


def take(source: Path | str, run: str) -> list[Run]:
    """Copy the finished runs of a folder, or one from the hub, into reports/<run>/, where tables
    show them.

    Raises:
        FileNotFoundError: there is none.
        FileExistsError: reports/<run> has one of that recipe and seed.
        ValueError: a file is not as it was written: nothing is copied.
    """
    found = check_all(Path(source)) or {opened(source): opened(source).damage(every=True)}
    if damaged := [f"{each.folder}: {reason}" for each, reason in found.items() if reason]:
        raise ValueError("; ".join(damaged))
    targets = {each: files.run(run) / each.recipe / f"seed{int(each.seed)}" for each in found}
    return [Run(_copy(each, folder)) for each, folder in targets.items()]


def _copy(run: Run, out: Path, card: str | None = None) -> Path:
    """The files that are given, each compared with its hash; run.json comes last."""
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out}: expected an empty folder, or none")
    out.mkdir(parents=True, exist_ok=True)
    for name in set(GIVEN) & set(run.card["artefacts"]):
        if (run.folder / name).exists():
            shutil.copyfile(run.artefact(name), out / name)
    if card:
        files.write_text(out / "README.md", card)
    shutil.copyfile(run.folder / "run.json", out / "run.json")
    return out


def model_card(run: Run) -> str:
    """README.md of the folder: what it is, what was measured, how it is loaded. Every number is
    read from the run."""
    card, metrics, config = run.card, run.metrics, run.config
    protocol, split = card["data"]["protocol"], metrics["split"]
    where = {"dataset_type": protocol, "dataset_name": protocol, "dataset_split": split}
    names = [f"{way} {metric}" for way in DIRECTIONS for metric in METRICS]
    measured = [
        EvalResult("text-video-retrieval", metric_type=name, metric_value=metrics[name], **where)
        for name in names
    ]
    data = ModelCardData(
        library_name="tvrkit",
        language=metrics["language"],
        tags=["text-video-retrieval", config.method_name],
        model_name=run.recipe,
        eval_results=measured,
    )
    lacks = ["not the whole protocol"] * bool(card["data"].get("partial"))
    lacks += [f"{len(metrics['missing'])} videos missing"] * bool(metrics["missing"])
    shown = {name: with_interval(metrics, name) for name in [*names, "rsum"]}
    values: dict[str, Any] = {
        "run": run,
        "card": card,
        "metrics": metrics,
        "config": config,
        "shown": shown,
    }
    values |= {"columns": METRICS, "ways": DIRECTIONS, "lacks": lacks}
    template = files.ASSETS / "model_card.md"
    return str(ModelCard.from_template(data, template_path=str(template), **values))
