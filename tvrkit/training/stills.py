"""How the embedded backbone `tvrkit-tiny` is made: contrastive pre-training on stills."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from tqdm import tqdm

from tvrkit import files
from tvrkit.data.text import tokenise
from tvrkit.evaluation.ranks import retrieval_metrics, retrieval_ranks
from tvrkit.losses.contrastive import info_nce
from tvrkit.models.backbone import BACKBONES, Backbone, create_backbone
from tvrkit.models.bpe import SimpleTokenizer, learn_merges, write_merges
from tvrkit.settings import BackboneConfig, settings
from tvrkit.shapes.stills import sample_captions, stills
from tvrkit.training.card import run_card, seed_everything
from tvrkit.training.optim import schedule

NAME = "tvrkit-tiny"
HELD_OUT = 1  # added to the seed for the stills that are never trained on
LANGUAGES = ("en", "zh")


@settings
class Pretraining:
    """How the weights are made; the defaults made the embedded ones.

    Attributes:
        stills: frames with captions to train on, seen once per epoch.
        held_out: frames that zero-shot retrieval is measured on.
        captions: sample that the BPE merges are learnt from.
        warmup: share of all steps with a linearly rising rate; then cosine to zero.
    """

    stills: int = 40_000
    held_out: int = 500
    captions: int = 20_000
    epochs: int = 5
    batch_size: int = 64
    lr: float = 1.0e-3
    weight_decay: float = 0.1
    warmup: float = 0.05
    max_logit_scale: float = 100.0
    max_grad_norm: float = 1.0


DEFAULTS = Pretraining()


def pretrain(out: Path | str, *, seed: int = 0, how: Pretraining = DEFAULTS) -> dict:
    """Make the embedded backbone: config, merges, weights (float16), run card. Written once all is
    done.

    Contrastive pre-training (Radford et al., 2021) on stills with one caption each, drawn anew in
    every epoch; batches are English and Chinese by turns; loss = symmetric InfoNCE. Neither stills
    nor captions show a motion.

    Args:
        out: folder; the package's `assets` replaces the embedded model.
        seed: of captions, stills, weights and order.

    Returns:
        The run card.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    out, started, assets = Path(out), time.monotonic(), BACKBONES[NAME]
    out.mkdir(parents=True, exist_ok=True)
    seed_everything(seed)
    backbone = create_backbone(BackboneConfig(NAME, pretrained=None))
    merges = learn_merges(sample_captions(how.captions, seed), backbone.clip.vocab_size)
    with TemporaryDirectory(prefix=".pretrain-", dir=out) as folder:
        made = [Path(folder) / file.name for file in (assets.config, assets.merges, assets.weights)]
        shutil.copy(assets.config, made[0])
        write_merges(merges, made[1])
        backbone.tokenizer = SimpleTokenizer(str(made[1]), context_length=backbone.context_length)
        losses = _fit(backbone, how, seed)
        save_file(
            {name: value.half() for name, value in backbone.clip.state_dict().items()}, made[2]
        )
        card = {
            "command": f"tvrkit backbone pretrain --seed {seed}",
            "settings": asdict(how),
            "data": "tvrkit.shapes: stills and sample_captions",
            "held_out_seed": seed + HELD_OUT,
            "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
            "loss_per_epoch": losses,
            "zero_shot_t2v": {
                language: _retrieval(backbone, how, seed, language) for language in LANGUAGES
            },
            "sha256": {file.name: files.sha256(file) for file in made},
            "wall_time_s": round(time.monotonic() - started, 1),
            **run_card(seed, torch.device("cpu")),
        }
        for file in made:
            file.replace(out / file.name)
    files.write_json(out / f"{NAME}.card.json", card)
    return card


def _fit(backbone: Backbone, how: Pretraining, seed: int) -> list[float]:
    """Train in place; mean loss of each epoch."""
    images, captions = stills(how.stills, seed)
    texts = [_tokens(captions, backbone, language) for language in LANGUAGES]
    optimizer = AdamW(
        backbone.parameters(), lr=how.lr, weight_decay=how.weight_decay, betas=(0.9, 0.98)
    )
    steps = len(images) // how.batch_size
    rates = schedule(optimizer, steps * how.epochs, how.warmup)
    rng, losses = np.random.default_rng(seed), []
    for epoch in range(how.epochs):
        batches = rng.permutation(len(images))[: steps * how.batch_size].reshape(steps, -1)
        total, progress = 0.0, tqdm(batches, desc=f"stills, epoch {epoch + 1} of {how.epochs}")
        for step, rows in enumerate(progress):
            loss = _loss(backbone, images[rows], _draw(texts[step % len(texts)], rows, rng))
            if not loss.isfinite():
                raise FloatingPointError(
                    f"pre-training, epoch {epoch + 1}: expected a finite loss, got {loss}"
                )
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(backbone.parameters(), how.max_grad_norm)
            optimizer.step()
            rates.step()
            backbone.logit_scale.data.clamp_(max=np.log(how.max_logit_scale))
            total += loss.item()
            progress.set_postfix(loss=f"{loss.item():.3f}")
        losses.append(round(total / steps, 4))
    return losses


def _loss(backbone: Backbone, images: np.ndarray, tokens: Tensor) -> Tensor:
    seen = normalize(_encode_images(backbone, images), dim=-1)
    said = normalize(backbone.encode_text(tokens, tokens > 0)[1], dim=-1)
    return info_nce(said @ seen.T, logit_scale=backbone.logit_scale.exp())


def _encode_images(backbone: Backbone, images: np.ndarray) -> Tensor:
    return backbone.encode_frames(torch.from_numpy(images).permute(0, 3, 1, 2)[:, None])[:, 0]


def _tokens(captions: list[list[str]], backbone: Backbone, language: str) -> list[Tensor]:
    """(captions of the still, L) tokens for every still. English captions are ASCII, Chinese are
    not."""
    chosen = [
        [text for text in texts if text.isascii() == (language == "en")] for texts in captions
    ]
    flat = [text for texts in chosen for text in texts]
    tokens, mask, _ = tokenise(flat, backbone.tokenizer, backbone.context_length)
    return list(tokens[:, : int(mask.sum(dim=1).max())].split([len(texts) for texts in chosen]))


def _draw(texts: list[Tensor], rows: np.ndarray, rng: np.random.Generator) -> Tensor:
    """One caption of each still, cut to the longest of them."""
    tokens = torch.stack([texts[row][rng.integers(len(texts[row]))] for row in rows])
    return tokens[:, : int((tokens > 0).sum(dim=1).max())]


@torch.no_grad()
def _retrieval(backbone: Backbone, how: Pretraining, seed: int, language: str) -> dict[str, float]:
    """Text-to-still recall on held-out stills, with the first caption of each as query."""
    images, captions = stills(how.held_out, seed + HELD_OUT)
    tokens = torch.stack([texts[0] for texts in _tokens(captions, backbone, language)])
    said = normalize(backbone.encode_text(tokens, tokens > 0)[1], dim=-1)
    ranks = retrieval_ranks(said @ normalize(_encode_images(backbone, images), dim=-1).T)
    return retrieval_metrics(ranks)
