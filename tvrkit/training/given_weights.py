"""From any weights to a number: a recipe scored without training, as an ordinary run; and features
that are made once."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from tvrkit.models import METHODS, method_class, weights
from tvrkit.recipes import load_recipe
from tvrkit.training import cached_features, distributed
from tvrkit.training.card import resolve_device, seed_everything
from tvrkit.training.runs import Run, ensure, prepared, start_file, started


def evaluate(
    recipe: str,
    checkpoint: Path | str | None = None,
    *,
    features: Path | str | None = None,
    split: str | None = None,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    run: str,
    seed: int = 0,
    device: str = "cpu",
) -> Run:
    """The finished run of a recipe whose weights are scored as they are.

    Without a checkpoint it is the backbone alone, zero-shot, where the method adds nothing
    (CLIP4Clip's meanP), else the method with new parts as initialised. A checkpoint brings the
    method's settings with it, as far as it shows them: they stand over the recipe's, and
    `overrides` over both. An author's file is scored with "released" fidelity.

    Args:
        recipe: name or path of a recipe: data, backbone and method.
        checkpoint: a file of the kit, or of released code: GLSCL, HMMC, DMAE, CLIP4Clip; or a
            finished run, see `runs.opened`.
        features: folder that `embed` wrote for the same backbone and data, read in place of frames
            and captions.
        split: in place of the recipe's `eval.split`.
        profile, overrides, run, seed, device: see `runs.ensure`.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: what `runs.ensure` and `weights.start` refuse, a checkpoint of another method,
            or one that is not what the finished run was made from.
    """
    chosen = {"eval.split": split, "data.features": features, "train.start_from": checkpoint}
    given = [f"{key}={json.dumps(str(value))}" for key, value in chosen.items() if value]
    given.append("train.epochs=0")
    options: dict[str, Any] = {"profile": profile, "run": run, "seed": seed, "device": device}
    if checkpoint is None:
        return ensure(recipe, overrides=[*overrides, *given], **options)
    origin = weights.describe(start_file(str(checkpoint)))
    wanted = load_recipe(recipe, overrides, profile)
    asked = method_class(wanted.method_name)
    # the recipe's word imports a module, not the file's
    taken = asked if origin.method == wanted.method_name else METHODS.get(origin.method, object)
    if not issubclass(taken, asked):
        expected = f"expected weights of method {wanted.method_name}, got {origin.method}"
        raise ValueError(f"{checkpoint}: {expected}: choose a recipe of {origin.method}")
    known = {field.name for field in fields(wanted.method)}
    shown = [f"method.{k}={yaml.safe_dump(v)}" for k, v in origin.settings.items() if k in known]
    done = ensure(recipe, overrides=[*shown, *overrides, *given], **options)
    if done.card["weights"]["sha256"] != origin.sha256:
        raise ValueError(f"{done.folder} is of other weights than {checkpoint}: another run name")
    return done


def embed(
    recipe: str,
    out: Path | str,
    *,
    splits: Sequence[str] = (),
    profile: str | None = None,
    overrides: Sequence[str] = (),
    device: str = "cpu",
) -> dict[str, Any]:
    """Write word, sentence and frame features of a recipe's backbone into a folder; its card.

    They stand for frames and captions in `evaluate(features=)` and in training with
    `data.features` and `train.freeze_backbone`.

    Args:
        recipe: name or path of a recipe; `train.start_from` may bring other weights.
        out: the folder.
        splits: of the prepared data set; all of them where empty.
        profile, overrides, device: see `runs.ensure`.
    """
    config = load_recipe(recipe, overrides, profile)
    where = distributed.start(resolve_device(device))
    manifest = prepared(config)
    names = splits or sorted(set(manifest.captions["split"]))
    seed_everything(0)  # of random weights
    method = started(config)[0].to(where)
    chosen = [manifest.split(name, config.data.language) for name in names]
    return cached_features.write(method, config, chosen, Path(out), where)
