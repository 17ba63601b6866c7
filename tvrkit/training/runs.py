"""Runs: one recipe, trained and evaluated with one seed, in one folder.

`reports/<run>/<recipe>/seed<k>/` holds config.yaml, train.log, history.csv, curve.csv,
mined.csv.gz, metrics.json, ranks.npz, factors.csv.gz, similarity.npz, checkpoint.safetensors,
run.json and figures/. run.json is written last: a folder without it is unfinished. It has the
SHA-256 of the others, with which they are compared whenever they are read.
"""

import contextlib
import gzip
import io
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from filelock import FileLock, Timeout
from tqdm import tqdm

from tvrkit import files
from tvrkit.data import loader, processes
from tvrkit.data.batch import TextVideoBatch
from tvrkit.data.manifest import Manifest, Split
from tvrkit.data.records import checked
from tvrkit.evaluation import evaluate as scoring
from tvrkit.evaluation.evaluate import Evaluation, evaluate
from tvrkit.evaluation.postprocess import NEEDS_BANK
from tvrkit.evaluation.ranks import DIRECTIONS, RSUM, metrics_of_directions
from tvrkit.files import expect
from tvrkit.models import checkpoints, hub, method_class, weights
from tvrkit.models.backbone import create_backbone
from tvrkit.models.method import Method
from tvrkit.recipes import build, load_recipe, read_sections, to_dict
from tvrkit.settings import Config, choose
from tvrkit.shapes.dataset import PREFIX, prepare_shapes
from tvrkit.training import cached_features, distributed, resume
from tvrkit.training import card as cards
from tvrkit.training.card import CHECKPOINT, peak_memory_mb, resolve_device, run_card
from tvrkit.training.resume import write_table
from tvrkit.training.trainer import State, Trainer

ON_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")
LARGEST = 2**28  # bytes that a file may unpack to
PATIENCE = 2.0  # seconds that a lock is waited for without a word


@dataclass(frozen=True)
class Run:
    """A finished run; its files are read, and checked, when asked for: a ValueError says which one
    is not as it was written.

    Attributes:
        folder: reports/<run>/<recipe>/seed<k>, or one given away, see `tvrkit.training.sharing`.
    """

    folder: Path

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return self.card["recipe"]

    @property
    def seed(self) -> int:
        """Seed of the weights, the batches and the frames drawn."""
        return self.card["seed"]

    @cached_property
    def card(self) -> dict[str, Any]:
        """run.json: code, versions, device, data, rules, time, memory, and hashes of the files."""
        return cards.read_card(self.folder)

    def artefact(self, name: str) -> Path:
        """The path of one of the run's files, once it is known to be as it was written.

        Raises:
            FileNotFoundError: it is not there; git keeps no weights, for one.
            ValueError: it is not the file whose SHA-256 is in run.json.
        """
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{name}: not in {_shown(self.folder)}")
        if cards.sha256(path) != self.card["artefacts"].get(name):
            raise ValueError(f"{name}: not as it was written: run.json has another SHA-256")
        return path

    def damage(self, every: bool = False, redraw: bool = False) -> str:
        """What is wrong with the files that tables are made from, or with `every` file that is
        there; with `redraw` also whether its intervals are those of its ranks. "" where nothing
        is."""
        try:
            there = [name for name in self.card["artefacts"] if (self.folder / name).exists()]
            for name in there if every else ["config.yaml"]:
                self.artefact(name)
            self._check_shown()
            if redraw and self.card["versions"]["numpy"] == np.__version__:  # others draw others
                # not `self.config`: a stranger's may name a module, which would be imported
                resamples = read_sections(self.artefact("config.yaml"))["eval"]["bootstrap"]
                _compare(self.metrics, scoring.intervals(self.ranks, self.clusters, resamples))
        except Exception as error:  # whatever a stranger's file raises: it must stop nobody else
            message = str(error) if isinstance(error, ValueError | OSError) else repr(error)
            return " ".join(message.split())  # pandas ends its lines
        return ""

    def _check_shown(self) -> None:
        """What tables and pages read of it is there: whoever seals a run can leave out what he
        likes, and notebooks add to it later."""
        card, metrics, data = self.card, self.metrics, self.card["data"]
        split = choose("split", metrics["split"], data["counts"])
        texts = [card["selection"], card["device"], files.check_name("recipe", self.recipe)]
        texts += [data["protocol"], data["split_hash"][split], metrics["language"], metrics["ties"]]
        numbers = [card[name] for name in ("seed", "parameters", "train_seconds", "peak_memory_mb")]
        numbers += [metrics[f"{way} R@1 {end}"] for way in DIRECTIONS for end in ("low", "high")]
        checked((texts + metrics["missing"], numbers), tuple[list[str], list[float]], "run.json")
        if "curve.csv" in card["artefacts"]:
            self.curve.drop(columns="split", errors="ignore").astype(float)["epoch"].iloc[-1]
        for path in self.folder.glob("diagnostics_*.json"):
            cards.read_diagnostics(path)

    @cached_property
    def config(self) -> Config:
        """The recipe with all overrides, as it ran."""
        return build(read_sections(self.artefact("config.yaml")), self.recipe)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per step: step, epoch, lr, logit_scale, loss and its parts."""
        return pd.read_csv(self.artefact("history.csv"))

    @cached_property
    def curve(self) -> pd.DataFrame:
        """One row per epoch: epoch, split, score (rsum), t2v and v2t R@1/5/10."""
        return pd.read_csv(self.artefact("curve.csv"))

    @cached_property
    def mined(self) -> pd.DataFrame:
        """Hard negatives of the selection split after each epoch: epoch and the columns of
        `Evaluation.mined`.

        Raises:
            FileNotFoundError: the data set has no such split.
        """
        return _unpacked(self.artefact("mined.csv.gz"))

    @cached_property
    def metrics(self) -> dict:
        """metrics.json alone, which is there even where the similarity matrix was not kept; its
        raw scores are counted again from `ranks`."""
        metrics = files.read_json(self.artefact("metrics.json"))
        _compare(metrics, metrics_of_directions(self.ranks))
        return metrics

    @cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        """ranks.npz alone: of each query by direction; there as `metrics` is."""
        return {way: self._arrays[way] for way in DIRECTIONS}

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return scoring.read_arrays(self.artefact("ranks.npz"), LARGEST)

    @property
    def ids(self) -> dict[str, np.ndarray]:
        """As `Evaluation.ids`."""
        return {key: self._arrays[key] for key in scoring.IDS}

    @property
    def clusters(self) -> dict[str, np.ndarray]:
        """As `Evaluation.clusters`."""
        return scoring.clusters(self.ids["video_of_caption"], self.ids["family_of_video"])

    @property
    def factors(self) -> pd.DataFrame:
        """As `Evaluation.factors`; empty, too, where a run is older than they are."""
        if scoring.FACTORS in self.card["artefacts"]:
            return _unpacked(self.artefact(scoring.FACTORS))
        noted = cards.OLD_FACTORS in self.card["artefacts"]
        return pd.read_csv(self.artefact(cards.OLD_FACTORS)) if noted else scoring.NO_FACTORS

    @cached_property
    def evaluation(self) -> Evaluation:
        """Ranks, metrics and similarity matrix on the recipe's evaluation split."""
        scores = scoring.read_arrays(self.artefact("similarity.npz"))["similarity"]
        counts = tuple(map(len, self.ranks.values()))
        expect(scores.shape == counts, "similarity.npz", f"{counts} scores", scores.shape)
        read: dict[str, Any] = self.ids | {"ranks": self.ranks, "metrics": self.metrics}
        return Evaluation(scores, **read, factors=self.factors)

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
        path = self.artefact(CHECKPOINT)
        method = build_method(self.config, checkpoints.facts(path))
        return checkpoints.load(method, path).to(device).eval()


def _unpacked(path: Path) -> pd.DataFrame:
    """A compressed table; a stranger's may unpack to more than memory holds."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = file.read(LARGEST + 1)
    expect(len(text) <= LARGEST, path.name, f"at most {LARGEST:,} characters", "more")
    return pd.read_csv(io.StringIO(text))


def _compare(metrics: dict, counted: dict[str, float]) -> None:
    """To rounding: releases of Python and numpy add in other ways."""
    for name, value in counted.items():
        written = metrics.get(name)
        if not isinstance(written, int | float) or not math.isclose(written, value, rel_tol=1e-9):
            raise ValueError(f"metrics.json: {name} is {written}, ranks.npz gives {value}")


def build_method(config: Config, facts: Mapping[str, Any] | None = None) -> Method:
    """Backbone and method of a recipe, untrained; the new parts' weights come from torch's global
    generator. `facts`: see `create_backbone`."""
    backbone = create_backbone(config.backbone, facts)
    for tower in (backbone.clip.text, backbone.clip.visual) if config.train.recompute else ():
        tower.set_grad_checkpointing()
    method = method_class(config.method_name)(backbone, config.method)
    if mode := config.train.compile:
        for name in ("encode_text", "encode_frames"):
            setattr(backbone, name, torch.compile(getattr(backbone, name), mode=mode))
    return method


def started(config: Config) -> tuple[Method, dict[str, str] | None]:
    """The method that a recipe begins with, and what a card says of the checkpoint that
    `train.start_from` names: with one, the backbone's own weights are not looked for."""
    if not config.train.start_from:
        return build_method(config), None
    path = start_file(config.train.start_from)
    method, origin = weights.start(partial(build_method, config), path)
    return method, origin.card


def opened(name: Path | str) -> Run:
    """A finished run, wherever it is.

    Args:
        name: its folder, "RUN/RECIPE/seedK" below reports/, or "OWNER/NAME" on the Hugging Face
            hub.

    Raises:
        FileNotFoundError: it is not there; or not on the hub, or the hub can't be reached.
    """
    # of a path that is absolute, twice itself
    folders = Path(name), files.home() / "reports" / name
    for folder in folders:
        if (folder / "run.json").is_file():
            return Run(folder)
    wanted = "RUN/RECIPE/seedK of a finished run, its folder, or OWNER/NAME on the Hugging Face hub"
    reason = f"{name}: no such checkpoint: expected {wanted}"
    if not ON_HUB.fullmatch(str(name)) or any(folder.exists() for folder in folders):
        raise FileNotFoundError(reason)
    try:
        return Run(hub.folder(str(name), "run.json", [*cards.GIVEN]))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{reason}; {error}") from None


def start_file(start_from: str) -> Path:
    """The checkpoint that `train.start_from` names: a file, or that of a run, see `opened`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not as the run has written it.
    """
    path = Path(start_from)
    return path if path.is_file() else opened(start_from).artefact(CHECKPOINT)


def find(run: str) -> list[Run]:
    """The finished runs under reports/<run>/, by recipe and seed; damaged ones as `sound`."""
    return sound(f for recipe in sorted(files.run(run).glob("*")) for f in _seed_folders(recipe))


def sound(folders: Iterable[Path]) -> list[Run]:
    """The finished runs among the folders; of one that is damaged a warning says why it is left
    out."""
    finished = [Run(folder) for folder in folders if (folder / "run.json").exists()]
    damaged = {run: reason for run in finished if (reason := run.damage())}
    for run, reason in damaged.items():
        warnings.warn(f"{_shown(run.folder)} is damaged and left out: {reason}", stacklevel=3)
    return [run for run in finished if run not in damaged]


def check_all(folder: Path) -> dict[Run, str]:
    """Every finished run in a folder, however deep, and all of `Run.damage`."""
    finished = [Run(card.parent) for card in sorted(folder.rglob("run.json"))]
    return {run: run.damage(every=True, redraw=True) for run in finished}


def _seed_folders(recipe: Path) -> list[Path]:
    """The folders seed0, seed1, ... of a recipe's, by number; others are not of a run."""
    seeds = [folder for folder in recipe.glob("seed*") if folder.name[4:].isdecimal()]
    return sorted(seeds, key=lambda folder: int(folder.name[4:]))


def prepared(config: Config) -> Manifest:
    """The recipe's data set; the embedded one is made where it is missing, others must have been
    prepared."""
    root = files.data(config.data.prepared)
    if not root.name.startswith(PREFIX):
        return Manifest.open(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    with lock(root.with_suffix(".lock"), f"makes {_shown(root)}"):
        return prepare_shapes(root)  # at once where it is whole and of this preset


@contextlib.contextmanager
def lock(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock file; who waits for it says so on stderr, and what the other process is
    doing."""
    own = FileLock(path)
    try:
        held = own.acquire(timeout=PATIENCE)
    except Timeout:
        print(f"waiting for another process that {doing}", file=sys.stderr, flush=True)
        held = own.acquire()
    with held:
        yield


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
    interrupted) and evaluated. What is refused leaves no folder behind. All processes of a launch
    call it alike: they train and evaluate together, and the main one writes.

    Args:
        recipe: name of a recipe, or path of a YAML file.
        profile: "smoke", "quick" or "full": overrides of `recipes/profiles.yaml` applied first.
        overrides: further "section.key=value" strings.
        run: folder under reports/.
        seed: of the weights, the batches and the frames drawn.
        device: "cpu", "cuda" or "cuda:k".

    Raises:
        ValueError: the folder holds a run with other settings (of any seed); each differing key is
            named. Or it holds a finished run without its weights or scores, as committed. Or it
            is damaged.
    """
    config = load_recipe(recipe, overrides, profile)
    folder = files.run(run) / config.recipe / f"seed{seed}"
    place = distributed.start(resolve_device(device))
    if processes.from_main(lambda: _finished(folder, config)):
        return Run(folder)
    task = Experiment(config, seed, place)
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder / ".lock", f"trains {_shown(folder)}")
    with held if processes.rank() == 0 else contextlib.nullcontext():
        if not processes.from_main(lambda: _finished(folder, config)):
            task.execute(folder)
    return Run(folder)


def _shown(path: Path) -> Path:
    return path.relative_to(files.home()) if path.is_relative_to(files.home()) else path


def _finished(folder: Path, config: Config) -> bool:
    """Whether the run is there and whole; ValueError where it, or another seed, is of other
    settings."""
    _check_settings(folder, config)
    if not (folder / "run.json").exists():
        return False
    if lost := [name for name in (CHECKPOINT, "similarity.npz") if not (folder / name).exists()]:
        what = f"a finished run without {' and '.join(lost)}, which git does not keep"
        raise ValueError(f"{_shown(folder)} is {what}: choose another run name")
    if damage := Run(folder).damage(every=True):
        raise ValueError(f"{_shown(folder)} is damaged: {damage}: choose another run name")
    return True


def _check_settings(folder: Path, config: Config) -> None:
    # other seeds too: a table averages over them
    for begun in (folder, *_seed_folders(folder.parent)):
        if not ((begun / "run.json").exists() or resume.paths(begun)):
            continue
        pairs = changed_settings(read_sections(begun / "config.yaml"), to_dict(config))
        if begun != folder and all(pairs.get("train.start_from", [None])):
            del pairs["train.start_from"]  # each seed may have weights of its own
        asked = (f"{key} is {a!r} there, {b!r} asked" for key, (a, b) in pairs.items())
        if changed := "; ".join(asked):
            other = f"holds a run with other settings: {changed}. Choose another run name"
            raise ValueError(f"{_shown(begun)} {other}")


def changed_settings(there: dict, wanted: dict) -> dict[str, tuple]:
    """{"train.lr": (0.001, 0.01), ...}: what differs between the sections of two recipes."""
    a, b = (pd.json_normalize(each).to_dict("records")[0] for each in (there, wanted))
    return {key: (a.get(key), b.get(key)) for key in a | b if a.get(key) != b.get(key)}


class Experiment:
    """A run that may begin: everything that can be refused has been, before there is a folder."""

    def __init__(self, config: Config, seed: int, device: torch.device):
        self.config, self.device, self.manifest = config, device, prepared(config)
        needs_train = config.train.epochs or NEEDS_BANK & set(config.eval.postprocess)
        self.train: Any = self._split("train") if needs_train else None
        self.reported, self.selection = self._split(config.eval.split), self._selection()
        self.code = run_card(seed, self.device)  # now: the checkout may change in the meantime
        cards.seed_everything(seed)
        method, self.weights = started(config)
        self.method = method.to(self.device)
        if config.train.freeze_backbone:
            self.method.backbone.freeze()
        if config.data.features:
            read = {each.name: each for each in (self.train, self.reported, self.selection) if each}
            cached_features.check(self.method, config, list(read.values()))
        self.trainer = self._trainer(seed) if config.train.epochs else None
        self.try_sizes()

    def _split(self, name: str) -> Split:
        return self.manifest.split(name, self.config.data.language)

    def _trainer(self, seed: int) -> Trainer:
        config, method = self.config, self.method
        read, tagged = (self.train, config, method.backbone), method.weighs_words
        batches = loader.train_loader(*read, seed=seed, tagged=tagged)
        return Trainer(method, batches, config.train, self.device, self.name_rows)

    def _selection(self) -> Split | None:
        """The split that epochs are scored on, None where there is none and no need for it."""
        data, train = self.config.data, self.config.train
        name = "test" if train.select == "test" else "val"
        if train.epochs and name in set(self.manifest.captions["split"]):
            return self._split(name)
        if train.epochs and train.select != "last":
            raise ValueError(f"train.select: {data.prepared} has no {name!r}: use 'last'")
        return None

    @torch.inference_mode()
    @torch.compiler.set_stance("force_eager")
    def try_sizes(self) -> None:
        """More words or frames than there are positions for are refused now, not by a batch."""
        data, method = self.config.data, self.method.eval()
        words = torch.ones(1, data.max_words, dtype=torch.long, device=self.device)
        text = method.encode_text(TextVideoBatch(words, words > 0, words))
        for split in filter(None, (self.reported, self.selection, self.train)):
            length = min(data.max_frames, max(split.frame_counts))
            frames = torch.ones(1, length, method.backbone.width, device=self.device)
            video = method.video_features(frames, frames[..., 0] > 0)
        if self.trainer and type(method).explain is not Method.explain:
            method.explain(text, video)  # what is built for a number of words or frames

    def execute(self, folder: Path) -> None:
        """Train, evaluate and write the folder."""
        config, method = self.config, self.method
        processes.from_main(lambda: self.begin(folder))
        state = State()
        if self.trainer:
            state = self.trainer.fit(folder, partial(self.score, folder), partial(_report, folder))
        start = time.perf_counter()
        result = evaluate(method, self.reported, config, bank=self.train, device=self.device)
        seconds = state.seconds, time.perf_counter() - start
        processes.from_main(lambda: self.write(folder, result, seconds))

    def begin(self, folder: Path) -> None:
        """What is known before the first step: the recipe, and what does not suit the backbone."""
        settings = yaml.safe_dump(to_dict(self.config), sort_keys=False)
        files.write_text(folder / "config.yaml", settings)
        about = self.backbone_card()
        for note in [*about["preprocessing"]["notes"], *(f"no {each}" for each in about["lacks"])]:
            _report(folder, f"{about['name']}: {note}")

    def write(self, folder: Path, result: Evaluation, seconds: tuple[float, float]) -> None:
        """The finished run; run.json comes last."""
        result.save(folder)
        if not self.trainer:
            self.note_as_given(result, folder)
        checkpoints.save(self.method, folder / CHECKPOINT, self.config)
        cards.write_card(folder, self.card(seconds))
        for state in resume.paths(folder):
            state.unlink()

    def score(self, folder: Path, state: State) -> dict:
        """An epoch's row of the curve; its hard negatives are noted."""
        if self.selection is None:
            return {}
        raw = replace(self.config, eval=replace(self.config.eval, postprocess=[]))
        result = evaluate(self.method, self.selection, raw, device=self.device)
        processes.from_main(lambda: _note_mined(folder / "mined.csv.gz", state.epoch, result))
        return _curve_row(result)

    def note_as_given(self, result: Evaluation, folder: Path) -> None:
        """History, curve and mined pairs of weights that are not trained: epoch 0, of the reported
        split."""
        scale = self.method.backbone.logit_scale.exp().item()
        step = {"step": 0, "epoch": 0, "lr": 0.0, "logit_scale": scale, "loss": float("nan")}
        write_table(folder / "history.csv", [step])
        write_table(folder / "curve.csv", [{"epoch": 0, **_curve_row(result)}])
        _note_mined(folder / "mined.csv.gz", 0, result)
        _report(folder, f"not trained: {result.metrics['selection']}")

    def name_rows(self, videos: list[int], captions: list[int]) -> str:
        """Rows of the training split, by id."""
        caption_ids = self.train.captions["caption_id"]
        names = [f"video {self.train.video_ids[row]}" for row in videos]
        return ", ".join(names + [f"caption {caption_ids.iloc[row]}" for row in captions])

    def backbone_card(self) -> dict:
        """Which backbone, what it did to the frames, and what it cannot do."""
        chosen, backbone = self.config.backbone, self.method.backbone
        names = {"name": chosen.name, "pretrained": chosen.pretrained}
        preprocessing = backbone.preprocessing.card(self.reported)
        return names | {"preprocessing": preprocessing, "lacks": backbone.lacks}

    def card(self, seconds: tuple[float, float]) -> dict:
        """What run.json holds, less the hashes."""
        config = self.config
        return {
            "recipe": config.recipe,
            **self.code,
            "data": self.manifest.card,
            "selection": scoring.selection_label(config.train, self.method),
            "weights": self.weights,
            "ties": config.eval.ties,
            "postprocess": config.eval.postprocess or ["raw"],
            "parameters": sum(p.numel() for p in self.method.parameters()),
            "backbone": self.backbone_card(),
            "train_seconds": round(seconds[0], 1),
            "eval_seconds": round(seconds[1], 1),
            "peak_memory_mb": round(peak_memory_mb(self.device)),
        }


def _curve_row(result: Evaluation) -> dict:
    recalls = {name: result.metrics[name] for name in RSUM}
    return {"split": result.metrics["split"], "score": result.metrics["rsum"], **recalls}


def _report(folder: Path, line: str) -> None:
    """One more line of the log; shown, unless TQDM_DISABLE is set."""
    with open(folder / "train.log", "a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
    if os.environ.get("TQDM_DISABLE", "0") in ("", "0"):
        tqdm.write(line, file=sys.stderr)


def _note_mined(path: Path, epoch: int, result: Evaluation) -> None:
    """Add an epoch's mined pairs to the table; what an interrupted run wrote of this epoch and
    later is dropped."""
    table = result.mined().assign(epoch=epoch)
    if path.exists():
        before = pd.read_csv(path)
        table = pd.concat([before[before["epoch"] < epoch], table])
    files.write_gzip(path, table.to_csv(index=False, float_format="%.5f"))
