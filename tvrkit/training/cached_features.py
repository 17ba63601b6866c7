"""Features of a backbone, written once so that heads train and are scored in seconds."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tvrkit import __version__, files
from tvrkit.data import processes
from tvrkit.data.batch import TextVideoBatch
from tvrkit.data.features import AGAIN, CARD, Features, content, write_shards
from tvrkit.data.loader import text_loader, video_loader
from tvrkit.data.manifest import Split
from tvrkit.models import checkpoints
from tvrkit.models.method import Method
from tvrkit.settings import Config

TOWERS = ("clip.text.", "clip.visual.")  # the logit scale is the loss's


def identity(method: Method, config: Config) -> dict[str, Any]:
    """What features depend on: towers by a hash of their weights, tokenizer, preprocessing, and how
    captions were read."""
    backbone = method.backbone
    towers = {k: v for k, v in backbone.state_dict().items() if k.startswith(TOWERS)}
    return {
        "backbone": backbone.name,
        "weights": checkpoints.digest(towers),
        "tokenizer": backbone.tokenizer_id,
        "preprocessing": json.loads(json.dumps(asdict(backbone.preprocessing))),
        "language": config.data.language,
        "max_words": config.data.max_words,
    }


def check(method: Method, config: Config, splits: Sequence[Split]) -> None:
    """Whether the features that a recipe names are its own, and can stand for its inputs.

    Raises:
        FileNotFoundError: no such folder, or it is half written.
        ValueError: they are of another backbone, other weights or other data; or the recipe changes
            what it reads in training.
    """
    data, train = config.data, config.train
    changing = {
        "data.keyword_masking": data.keyword_masking,
        "data.augmentation": data.augmentation,
        "data.captions=tagged": data.captions == "tagged",
        "train.freeze_backbone=false": not train.freeze_backbone,
    }
    if named := [name for name, on in changing.items() if on and train.epochs]:
        raise ValueError(f"features: expected frozen towers, inputs as they are: change {named}")
    own = identity(method, config)
    for split in splits:
        cached = Features(data.features or "", split.name)
        there = cached.card | {f"split {split.name}": cached.card["splits"][split.name]}
        for key, value in (own | {f"split {split.name}": content(split)}).items():
            where, got = f"features {data.features}", there.get(key)
            files.expect(got == value, where, f"{key} {value}", f"{got}: {AGAIN}")
        cached.item("videos", len(split.video_ids) - 1)  # the last ones: nothing was cut off
        cached.item("texts", len(split.captions) - 1)


@torch.inference_mode()
def write(
    method: Method, config: Config, splits: Sequence[Split], out: Path, device: torch.device
) -> dict[str, Any]:
    """Write the features of all stored frames and all captions of `splits` into a folder.

    Returns:
        The card.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / CARD).unlink(missing_ok=True)
    method.eval()
    for split in splits:
        for kind, encode in {"videos": _videos, "texts": _texts}.items():
            items = encode(method, config, split, device)
            if processes.rank() == 0:
                write_shards(out, f"{split.name}-{kind}", items)
            else:
                deque(items, maxlen=0)  # its share of the work
    card = {**identity(method, config), "pretrained": config.backbone.pretrained}
    card |= {"width": method.backbone.width, "made_by": f"tvrkit {__version__}"}
    card["splits"] = {split.name: content(split) for split in splits}
    processes.from_main(lambda: files.write_json(out / CARD, card))
    return card


def _videos(method: Method, config: Config, split: Split, device) -> Iterator[Tensor]:
    """Of each video the features of all its stored frames, as many at a time as in evaluation."""
    longest = max(split.frame_counts)
    size = max(1, config.eval.batch_size * config.data.max_frames // longest)
    every = replace(config.data, max_frames=longest, features=None)
    whole = replace(config, data=every, eval=replace(config.eval, batch_size=size))

    def encode(batch: TextVideoBatch) -> list[Tensor]:
        frames = method.backbone.encode_frames(batch.frames.to(device)).float().cpu()
        return [own[mask] for own, mask in zip(frames, batch.frame_mask, strict=True)]

    loader = tqdm(video_loader(split, whole, method.backbone), f"{split.name} videos")
    return processes.in_turn(loader, encode)


def _texts(method: Method, config: Config, split: Split, device) -> Iterator[Tensor]:
    """Of each caption its sentence, then its words."""
    plain = replace(config, data=replace(config.data, features=None))

    def encode(batch: TextVideoBatch) -> list[Tensor]:
        given = batch.tokens.to(device), batch.token_mask.to(device)
        words, sentence = (part.float().cpu() for part in method.backbone.encode_text(*given))
        return [
            torch.cat([sentence[row : row + 1], words[row][mask]])
            for row, mask in enumerate(batch.token_mask)
        ]

    loader = tqdm(text_loader(split, plain, method.backbone, False), f"{split.name} captions")
    return processes.in_turn(loader, encode)
