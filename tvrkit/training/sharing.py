"""Give and take: a finished run as a folder that stands for itself, here or on Hugging Face's hub.

The folder is the run less its log and its similarity matrix: config.yaml, checkpoint.safetensors
(weights, with method, backbone, tokenizer and preprocessing), metrics.json and ranks.npz, run.json
with the hash of each, and README.md, its model card. Whoever takes it counts its numbers again.
"""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, create_repo, upload_folder

from tvrkit import files
from tvrkit.evaluation.compare import with_interval
from tvrkit.models.method import Method
from tvrkit.training.card import CHECKPOINT, GIVEN
from tvrkit.training.runs import Run, opened


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
    """Write a run's method as a folder that every command takes in place of a run, and tables too
    where it is reports/RUN/RECIPE/seedK. Each file is compared with its hash.

    Args:
        run: a `Run`, or its name, see `runs.opened`.
        out: the folder; empty, or not there.

    Raises:
        FileNotFoundError: no such run, or it has no weights.
        FileExistsError: the folder holds something.
        ValueError: a file of the run is not as it was written.
    """
    given, out = run if isinstance(run, Run) else opened(run), Path(out)
    if out.is_file() or (out.exists() and any(out.iterdir())):
        raise FileExistsError(f"{out}: expected an empty folder, or none")
    there = {name for name in GIVEN & {*given.card["artefacts"]} if (given.folder / name).exists()}
    sources = [given.artefact(name) for name in {CHECKPOINT} | there]
    out.mkdir(parents=True, exist_ok=True)
    for source in [*sources, given.folder / "run.json"]:  # run.json last: with it the run is whole
        shutil.copyfile(source, out / source.name)
    files.write_text(out / "README.md", model_card(given))
    return out


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
        reason = files.reason(error)
        raise RuntimeError(f"{name}: not uploaded (`hf auth login`?): {reason}") from None
    return str(address)


def model_card(run: Run) -> str:
    """README.md of the folder: what it is, what was measured, how it is loaded. Every number is
    read from the run."""
    tags = ["text-video-retrieval", run.config.method_name]
    about = ModelCardData(library_name="tvrkit", language=run.metrics["language"], tags=tags)
    options: dict[str, Any] = {"run": run, "interval": with_interval}
    template = str(files.ASSETS / "model_card.md")
    return str(ModelCard.from_template(about, template_path=template, **options))
