"""Runs: one recipe, trained and evaluated with one seed, in one folder.

`reports/<run>/<recipe>/seed<k>/` holds config.yaml, run.json, history.csv, curve.csv, metrics.json,
ranks.npz, similarity.npz, mined.csv.gz, checkpoint.safetensors and figures/. run.json is written
last: a folder without it is unfinished.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from filelock import FileLock

from tvrkit import files
from tvrkit.data import loader
from tvrkit.data.manifest import Manifest, Split
from tvrkit.evaluation import evaluate as evaluation
from tvrkit.evaluation.ranks import RSUM
from tvrkit.models import checkpoints, method_class
from tvrkit.models.backbone import create_backbone
from tvrkit.models.method import Method
from tvrkit.recipes import build, load_recipe, to_dict
from tvrkit.settings import Config
from tvrkit.shapes.dataset import PREFIX, prepare_shapes
from tvrkit.training.card import peak_memory_mb, resolve_device, run_card, seed_everything
from tvrkit.training.trainer import State, Trainer


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run; its tables are read when asked for.

    Attributes:
        folder: reports/<run>/<recipe>/seed<k>.
    """

    folder: Path

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return self.folder.parent.name

    @property
    def seed(self) -> int:
        """Seed of the weights, the batches and the frames drawn."""
        return self.card["seed"]

    @cached_property
    def card(self) -> dict:
        """run.json: code, versions, device, data, rules, time and memory."""
        return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))

    @cached_property
    def config(self) -> Config:
        """The recipe with all overrides, as it ran."""
        return read_config(self.folder)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per step: step, epoch, lr, logit_scale, loss and its parts."""
        return pd.read_csv(self.folder / "history.csv")

    @cached_property
    def curve(self) -> pd.DataFrame:
        """One row per epoch: epoch, split, score (rsum), t2v and v2t R@1/5/10."""
        return pd.read_csv(self.folder / "curve.csv")

    @cached_property
    def mined(self) -> pd.DataFrame:
        """Hard negatives of the selection split after each epoch: epoch and the columns of
        `Evaluation.mined`.

        Raises:
            FileNotFoundError: the data set has no such split.
        """
        return pd.read_csv(self.folder / "mined.csv.gz")

    @cached_property
    def metrics(self) -> dict:
        """metrics.json alone, which is there even where the similarity matrix was not kept."""
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))

    @cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        """ranks.npz alone: of each query by direction, ids and `video_of_caption`; there as
        `metrics` is."""
        with np.load(self.folder / "ranks.npz") as file:
            return dict(file)

    @property
    def video_of_caption(self) -> np.ndarray:
        """(N_t,) int64 column of each caption's own video."""
        return self.ranks["video_of_caption"]

    @cached_property
    def evaluation(self) -> evaluation.Evaluation:
        """Ranks, metrics and similarity matrix on the recipe's evaluation split."""
        return evaluation.Evaluation.load(self.folder)

    @cached_property
    def manifest(self) -> Manifest:
        """The prepared data set the run used."""
        return Manifest.open(files.data(self.config.data.prepared))

    @cached_property
    def split(self) -> Split:
        """The captions and videos it is evaluated on."""
        return self.manifest.split(self.config.eval.split, self.config.data.language)

    def method(self, device: str = "cpu") -> Method:
        """The trained method, in evaluation mode."""
        method = build_method(self.config)
        checkpoints.load(method, self.folder / "checkpoint.safetensors")
        return method.to(device).eval()


def build_method(config: Config) -> Method:
    """Backbone and method of a recipe, untrained; the new parts' weights come from torch's global
    generator."""
    return method_class(config.method_name)(create_backbone(config.backbone), config.method)


def read_config(folder: Path) -> Config:
    """The config.yaml of a run folder."""
    raw = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return build(raw, folder.parent.name)


def find(run: str) -> list[Run]:
    """The finished runs under reports/<run>/, by recipe and seed."""
    return [Run(card.parent) for card in sorted(files.run(run).glob("*/seed*/run.json"))]


def prepared(config: Config) -> Manifest:
    """The recipe's data set; the embedded one is made where it is missing, others must have been
    prepared."""
    root = files.data(config.data.prepared)
    if root.name.startswith(PREFIX):  # returns at once where it is whole and of this preset
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root.with_suffix(".lock")):
            return prepare_shapes(root)
    return Manifest.open(root)


def ensure(
    recipe: str,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    run: str,
    seed: int = 0,
    device: str = "cpu",
) -> Run:
    """The finished run of a recipe: found in its folder, else trained (from where it was
    interrupted) and evaluated.

    Args:
        recipe: name of a recipe, or path of a YAML file.
        profile: "smoke", "quick" or "full": overrides of `recipes/profiles.yaml` applied first.
        overrides: further "section.key=value" strings.
        run: folder under reports/.
        seed: of the weights, the batches and the frames drawn.
        device: "cpu", "cuda" or "cuda:k".

    Raises:
        ValueError: the folder holds a run with other settings (of any seed); each differing key is
            named. Or it holds a finished run without its weights or scores, as committed. Or this
            is
            one of several processes: a run is one process (`training.gather` is written for
            several; the run folder is not).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"a run is one process: expected WORLD_SIZE 1, got {os.environ['WORLD_SIZE']}"
        )
    if (
        multiprocessing.parent_process() is not None
    ):  # would wait for the lock that its parent holds
        raise RuntimeError(
            "runs.ensure in a worker process: put the script's own code under `if __name__ == '__main__':`"
        )
    config = load_recipe(recipe, overrides, profile)
    folder = files.run(run) / config.recipe / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        _same_settings(folder, config)
        if (folder / "run.json").exists():
            _whole(folder)
        else:
            files.write_text(
                folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False)
            )
            _train(config, folder, seed, resolve_device(device))
    return Run(folder)


def _whole(folder: Path) -> None:
    lost = [
        name
        for name in ("checkpoint.safetensors", "similarity.npz")
        if not (folder / name).exists()
    ]
    if lost:
        shown = folder.relative_to(files.home())
        raise ValueError(
            f"{shown} is a finished run without {' and '.join(lost)}, which git does not keep: "
            "choose another run name"
        )


def _same_settings(folder: Path, config: Config) -> None:
    seeds = [
        folder,
        *sorted(folder.parent.glob("seed*")),
    ]  # other seeds too: a table averages over them
    begun = [f for f in seeds if (f / "run.json").exists() or (f / "resume.pt").exists()]
    if begun:
        folder = begun[0]
        there, asked = flatten(to_dict(read_config(folder))), flatten(to_dict(config))
        changed = [
            f"{k} is {there.get(k)!r} there, {asked.get(k)!r} asked"
            for k in {**there, **asked}
            if there.get(k) != asked.get(k)
        ]
        if changed:
            shown = (
                folder.relative_to(files.home()) if folder.is_relative_to(files.home()) else folder
            )
            raise ValueError(
                f"{shown} holds a run with other settings: {'; '.join(changed)}. Choose another run name"
            )


def flatten(raw: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in raw.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat


def _train(config: Config, folder: Path, seed: int, device: torch.device) -> None:
    code = run_card(seed, device)  # now: the checkout may be another when the training ends
    manifest = prepared(config)
    train, reported = (
        manifest.split(name, config.data.language) for name in ("train", config.eval.split)
    )
    selection = "test" if config.train.select == "test" else "val"
    selected = None
    if selection in set(manifest.captions["split"]):
        selected = manifest.split(selection, config.data.language)
    elif config.train.select != "last":
        raise ValueError(
            f"train.select is {selection!r}, but {config.data.prepared} has no such split: use 'last'"
        )
    seed_everything(seed)
    method = build_method(config).to(device)
    if config.train.start_from:
        checkpoints.start_from(
            method, files.run(config.train.start_from) / "checkpoint.safetensors"
        )
    batches = loader.train_loader(train, config, method.backbone, seed=seed)
    trainer = Trainer(method, batches, config.train, device, partial(_name_rows, train))
    resume = folder / "resume.pt"

    def after_epoch(state: State) -> dict:
        if selected is None:
            return {}
        raw = dataclasses.replace(config, eval=dataclasses.replace(config.eval, postprocess=[]))
        result = evaluation.evaluate(method, selected, raw, device=device)
        _note_mined(folder / "mined.csv.gz", state.epoch, result)
        return _curve_row(selection, result.metrics)

    state = trainer.fit(resume, after_epoch)
    start = time.perf_counter()
    result = evaluation.evaluate(method, reported, config, bank=train, device=device)
    result.save(folder)
    checkpoints.save(method, folder / "checkpoint.safetensors", config)
    files.write_text(folder / "history.csv", pd.DataFrame(state.history).to_csv(index=False))
    files.write_text(folder / "curve.csv", pd.DataFrame(state.curve).to_csv(index=False))
    card = {
        "recipe": config.recipe,
        **code,
        "data": manifest.card,
        "selection": config.train.select
        + (" (optimistic)" if config.train.select == "test" else ""),
        "ties": config.eval.ties,
        "postprocess": config.eval.postprocess or ["raw"],
        "parameters": sum(p.numel() for p in method.parameters()),
        "backbone": {"name": config.backbone.name, "pretrained": config.backbone.pretrained},
        "train_seconds": round(state.seconds, 1),
        "eval_seconds": round(time.perf_counter() - start, 1),
        "peak_memory_mb": round(peak_memory_mb(device)),
        "checkpoint_sha256": files.sha256(folder / "checkpoint.safetensors"),
    }
    files.write_json(folder / "run.json", card)
    resume.unlink(missing_ok=True)


def _curve_row(split: str, metrics: dict) -> dict:
    return {"split": split, "score": metrics["rsum"]} | {name: metrics[name] for name in RSUM}


def _note_mined(path: Path, epoch: int, result: evaluation.Evaluation) -> None:
    """Add an epoch's mined pairs to the table; what an interrupted run wrote of this epoch and
    later is dropped."""
    table = result.mined().assign(epoch=epoch)
    if path.exists():
        before = pd.read_csv(path)
        table = pd.concat([before[before["epoch"] < epoch], table])
    part = path.with_name(f".{path.name}")
    table.to_csv(part, index=False, float_format="%.5f", compression={"method": "gzip", "mtime": 1})
    part.replace(path)


def _name_rows(split, videos: list[int], captions: list[int]) -> str:
    names = [f"video {split.video_ids[row]}" for row in videos]
    return ", ".join(names + [f"caption {split.captions.caption_id.iloc[row]}" for row in captions])
