"""How the embedded backbone `tvrkit-tiny` is made: contrastive pre-training on stills."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from tqdm import tqdm

from tvrkit import files
from tvrkit.data.text import LANGUAGES, tokenise
from tvrkit.evaluation.ranks import retrieval_metrics, retrieval_ranks
from tvrkit.losses.contrastive import info_nce
from tvrkit.models.backbone import BACKBONES, TINY, Backbone, create_backbone
from tvrkit.models.bpe import SimpleTokenizer, learn_merges, write_merges
from tvrkit.settings import BackboneConfig, settings
from tvrkit.shapes.scenes import FACTORS, VALUES
from tvrkit.shapes.stills import CAPTIONS, SEEN, sample_captions, stills, swapped_stills
from tvrkit.training.card import run_card, seed_everything
from tvrkit.training.optim import schedule

HELD_OUT = 1  # added to the seed for the stills that are never trained on
SHOWN = torch.tensor([name in SEEN for name in FACTORS])  # factors of a single frame
FACTOR_SCALE = 20.0  # of cosines with the table of factors
SWAPPED_FACTORS = ("colour", "size", "shape", "place")


@settings
class Pretraining:
    """How the weights are made; the defaults made the embedded ones.

    Attributes:
        stills: frames with captions to train on, seen once per epoch.
        held_out: frames that zero-shot retrieval is measured on.
        captions: sample that the BPE merges are learnt from.
        warmup: share of all steps with a linearly rising rate; then cosine to zero.
    """

    stills: int = 30_000
    held_out: int = 500
    captions: int = 20_000
    epochs: int = 6
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
    every epoch; batches are English and Chinese by turns; loss = symmetric InfoNCE + what
    `FactorTable` asks of image and text, and of captions with motion, which are read and never
    seen.

    Args:
        out: folder; the package's `assets` replaces the embedded model.
        seed: of captions, stills, weights and order.

    Returns:
        The run card.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    out, started, assets = Path(out), time.monotonic(), BACKBONES[TINY]
    out.mkdir(parents=True, exist_ok=True)
    seed_everything(seed)
    backbone = create_backbone(BackboneConfig(TINY, pretrained=None))
    merges = learn_merges(sample_captions(how.captions, seed), backbone.clip.vocab_size)
    with TemporaryDirectory(prefix=".pretrain-", dir=out) as folder:
        made = [Path(folder) / file.name for file in (assets.config, assets.merges, assets.weights)]
        shutil.copy(assets.config, made[0])
        write_merges(merges, made[1])
        backbone.tokenizer = SimpleTokenizer(str(made[1]), context_length=backbone.context_length)
        losses = _fit(backbone, how, seed)
        save_file({k: v.half() for k, v in backbone.clip.state_dict().items()}, made[2])
        card = {
            "command": f"tvrkit backbone pretrain --seed {seed}",
            "settings": asdict(how),
            "data": "tvrkit.shapes: stills and sample_captions",
            "held_out_seed": seed + HELD_OUT,
            "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
            "loss_per_epoch": losses,
            "zero_shot_t2v": retrieval(backbone, how.held_out, seed + HELD_OUT),
            "own_over_swapped": own_over_swapped(backbone, how.held_out, seed + HELD_OUT),
            "sha256": {file.name: files.sha256(file) for file in made},
            "wall_time_s": round(time.monotonic() - started, 1),
            **run_card(seed, torch.device("cpu")),
        }
        for file in made:
            file.replace(out / file.name)
    files.write_json(out / f"{TINY}.card.json", card)
    return card


def _fit(backbone: Backbone, how: Pretraining, seed: int) -> list[float]:
    """Train in place; mean loss of each epoch."""
    data = stills(how.stills, seed)
    tokens = {language: _tokens(texts, backbone) for language, texts in data.captions.items()}
    values = torch.from_numpy(data.values)
    table = FactorTable(backbone.width)
    weights = [*backbone.parameters(), *table.parameters()]
    optimizer = AdamW(weights, lr=how.lr, weight_decay=how.weight_decay, betas=(0.9, 0.98))
    steps = how.stills // how.batch_size
    rates = schedule(optimizer, steps * how.epochs, how.warmup)
    rng, losses = np.random.default_rng(seed), []
    for epoch in range(how.epochs):
        batches = rng.permutation(how.stills)[: steps * how.batch_size].reshape(steps, -1)
        total, progress = 0.0, tqdm(batches, desc=f"stills, epoch {epoch + 1} of {how.epochs}")
        for step, rows in enumerate(progress):
            language, which = LANGUAGES[step % 2], rng.integers(CAPTIONS, size=len(rows))
            text = _encode_text(backbone, tokens[language][rows, which])
            read = _encode_text(backbone, tokens[language][rows, CAPTIONS])
            image = _encode_images(backbone, data.images[rows])
            loss = info_nce(text @ image.T, logit_scale=backbone.logit_scale.exp())
            loss += table(image, values[rows].where(SHOWN, -1))
            for features, caption in ((text, which), (read, CAPTIONS)):
                named = torch.from_numpy(data.named[language][rows, caption])
                loss += table(features, values[rows].where(named, -1))
            if not loss.isfinite():
                where = f"pre-training, epoch {epoch + 1}"
                raise FloatingPointError(f"{where}: expected a finite loss, got {loss}")
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(weights, how.max_grad_norm)
            optimizer.step()
            rates.step()
            backbone.logit_scale.data.clamp_(max=np.log(how.max_logit_scale))
            total += loss.item()
            progress.set_postfix(loss=f"{loss.item():.3f}")
        losses.append(round(total / steps, 4))
    return losses


class FactorTable(nn.Module):
    """One learnt vector for each value of each factor, by which both towers are classified.

    With InfoNCE alone, as in version 0.1.0, place stays at chance: text and image would first have
    to agree on a direction for each value. The table is that direction; it is thrown away after
    the training. Motion is read only: the text tower knows its words, as CLIP's does, and no image
    shows it.
    """

    def __init__(self, width: int):
        super().__init__()
        self.vectors = nn.ParameterList(torch.randn(len(VALUES[name]), width) for name in FACTORS)

    def forward(self, features: Tensor, values: Tensor) -> Tensor:
        """Mean over the factors of the cross-entropy of softmax(FACTOR_SCALE x cosine).

        Args:
            features: (B, D) float, normalised.
            values: (B, factors) int64, -1 where the factor is not seen, or not told.
        """
        losses = []
        for vectors, value in zip(self.vectors, values.unbind(dim=1), strict=True):
            logits = FACTOR_SCALE * features @ normalize(vectors, dim=-1).T
            total = cross_entropy(logits, value, ignore_index=-1, reduction="sum")
            losses.append(total / (value >= 0).sum().clamp(min=1))
        return torch.stack(losses).mean()


def _encode_images(backbone: Backbone, images: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)[:, None]
    return normalize(backbone.encode_frames(pixels)[:, 0], dim=-1)


def _encode_text(backbone: Backbone, tokens: Tensor) -> Tensor:
    tokens = tokens[:, : int((tokens > 0).sum(dim=1).max())]
    return normalize(backbone.encode_text(tokens, tokens > 0)[1], dim=-1)


def _tokens(captions: list[list[str]], backbone: Backbone) -> Tensor:
    """(N, captions of each, L) int64."""
    flat = [text for texts in captions for text in texts]
    tokens, mask, _ = tokenise(flat, backbone.tokenizer, backbone.context_length)
    return tokens[:, : int(mask.sum(dim=1).max())].unflatten(0, (len(captions), -1))


@torch.no_grad()
def retrieval(backbone: Backbone, count: int, seed: int) -> dict[str, dict[str, float]]:
    """Text-to-still recall on `count` stills by language, with the first caption of each as
    query."""
    data = stills(count, seed)
    images, metrics = _encode_images(backbone, data.images), {}
    for language, captions in data.captions.items():
        said = _encode_text(backbone, _tokens(captions, backbone)[:, 0])
        metrics[language] = retrieval_metrics(retrieval_ranks(said @ images.T))
    return metrics


@torch.no_grad()
def own_over_swapped(backbone: Backbone, count: int, seed: int) -> dict[str, dict[str, float]]:
    """By language and factor, in how many of `count` pairs (%) a caption scores its own still above
    one in which that factor alone is another. Chance is 50."""
    shares: dict[str, dict[str, float]] = {}
    for language in LANGUAGES:
        for factor in SWAPPED_FACTORS:
            images, captions = swapped_stills(count, factor, language, seed)
            shown = _encode_images(backbone, images.reshape(-1, *images.shape[2:]))
            said = _encode_text(backbone, _tokens([[text] for text in captions], backbone)[:, 0])
            own, other = torch.einsum("nd,nkd->kn", said, shown.unflatten(0, (count, 2)))
            share = 100 * (own > other).double().mean()
            shares.setdefault(language, {})[factor] = round(float(share), 1)
    return shares
