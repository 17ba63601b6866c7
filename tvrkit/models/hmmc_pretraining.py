"""HMMC's pre-training (Shen et al., IEEE TIP 2023): contrast with queues of keys from momentum
encoders at the level of videos (VTM) and of frames (FTM), agreement of neighbouring frames (FAM),
and masked language modelling (MLM)."""

import math
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures, inner_words, uniform
from tvrkit.losses.momentum import frame_text, neighbour_frames, queue_contrast
from tvrkit.models.backbone import Backbone
from tvrkit.models.hmmc import HMMC, EncoderSettings
from tvrkit.models.method import Tensors
from tvrkit.models.momentum import NegativeQueue, momentum_update
from tvrkit.models.temporal import mean_frame
from tvrkit.settings import Share, settings

MASK_CHARACTER = "*</w>"  # CLIP's vocabulary has no [MASK]; captions hardly use this one
UNMASKED = -100  # label of tokens that are not to be predicted
KEPT_AS_MASK, REPLACED = 0.8, 0.1  # of the chosen words; the rest stays (Devlin et al., 2019)
BERT_EPS = 1e-12  # of the prediction head's LayerNorm


@settings
class HMMCPretrainingSettings(EncoderSettings):
    """Pre-training.

    Attributes:
        neighbour_weight, video_weight, frame_weight, language_weight: of FAM, VTM, FTM and MLM.
        momentum: of the momentum encoders.
        temperature: of the contrast with queues.
        queue_size: videos, titles and tags kept as negatives.
        frame_queue_size: frames, and projected frames, kept as negatives.
        projector_width: inner width of projector and predictor.
        mask_share: share of the words that MLM predicts.
    """

    neighbour_weight: NonNegativeFloat = 0.05
    video_weight: NonNegativeFloat = 0.45
    frame_weight: NonNegativeFloat = 0.45
    language_weight: NonNegativeFloat = 0.05
    momentum: Share = 0.99
    temperature: PositiveFloat = 0.07
    queue_size: PositiveInt = 1024
    frame_queue_size: PositiveInt = 4096
    projector_width: PositiveInt = 4096
    mask_share: Share = 0.15


class WordHead(nn.Module):
    """BERT's prediction head: scores of all words at one position.

    Args:
        width: of the text tower's words.
        size: of the vocabulary.
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=BERT_EPS)
        self.decoder = nn.Linear(width, size)

    def forward(self, words: Tensor) -> Tensor:
        """(..., size) float logits of words (..., D)."""
        return self.decoder(self.norm(F.gelu(self.dense(words))))

    def loss(self, words: Tensor, labels: Tensor, share: float = 1.0) -> Tensor:
        """MLM: mean cross entropy over the positions of words (B, L, D) with a label; 0 if there is
        none.

        How many have one is not read, which a GPU would be waited for: as many are looked at,
        those with a label first, as `share` of all exceeds once in 10^9 draws.
        """
        words, labels = words.flatten(0, 1), labels.flatten()
        expected = share * len(labels)
        most = math.ceil(expected + 6 * math.sqrt(expected * (1 - share)))
        chosen = (labels == UNMASKED).argsort(stable=True)[:most]
        logits, labels = self(words[chosen]), labels[chosen]
        total = F.cross_entropy(logits, labels, ignore_index=UNMASKED, reduction="sum")
        return total / (labels != UNMASKED).sum().clamp(min=1)


def mask_words(
    tokens: Tensor, mask: Tensor, draws: Tensor, *, share: float, mask_token: int, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Choose words for MLM: 80 % of them become `mask_token`, 10 % a random one, 10 % stay.

    Only real words are chosen, never padding nor the first and last token (SOT and EOT, or CLS and
    SEP): 74 % of the released English targets are padding (finding 24).

    Args:
        tokens: (B, L) int64.
        mask: (B, L) bool, True on real tokens, which come first.
        draws: (B, 3, L) float in [0, 1): whether a word is chosen, what happens to it, and what it
            becomes.
        share: of the words that are chosen, on average.
        mask_token: id.
        vocabulary: number of ids.

    Returns:
        tokens (B, L) with replacements, and labels (B, L) int64: the original id where chosen, else
        -100.
    """
    choice, fate, word = draws.unbind(dim=1)
    chosen = inner_words(mask) & (choice < share)
    hidden = fate < KEPT_AS_MASK
    swapped = ~hidden & (fate < KEPT_AS_MASK + REPLACED)
    masked = tokens.masked_fill(chosen & hidden, mask_token)
    masked = torch.where(chosen & swapped, (word * vocabulary).long(), masked)
    return masked, tokens.masked_fill(~chosen, UNMASKED)


def vocabulary_of(tokenizer) -> tuple[int, int]:
    """Number of ids and the id of the mask token of an open_clip tokenizer."""
    if isinstance(tokenizer, HFTokenizer):
        return len(tokenizer.tokenizer), tokenizer.tokenizer.mask_token_id
    return tokenizer.vocab_size, tokenizer.encoder[MASK_CHARACTER]


class Perceptron(nn.Sequential):
    """HMMC's projector and predictor: two layers with BatchNorm between, D -> inner -> D."""

    def __init__(self, width: int, inner: int):
        layers = [nn.Linear(width, inner), nn.BatchNorm1d(inner), nn.ReLU()]
        super().__init__(*layers, nn.Linear(inner, width))

    def on_valid(self, frames: Tensor, mask: Tensor) -> Tensor:
        """What the layers make of the frames (B, F, D) in `mask` (B, F), 0 elsewhere.

        Padding stays out of BatchNorm, which is written out here: a GPU would be waited for if
        frames were picked.
        """
        layers: Any = self
        inner, norm, relu, outer = layers
        x, valid = inner(frames), mask[..., None].to(frames.dtype)
        count = valid.sum()
        mean = (valid * x).sum((0, 1)) / count
        variance = (valid * (x - mean).square()).sum((0, 1)) / count
        with torch.no_grad():
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * count / (count - 1).clamp(min=1), norm.momentum)
            norm.num_batches_tracked.add_(1)
        x = norm.weight * (x - mean) * (variance + norm.eps).rsqrt() + norm.bias
        return valid * outer(relu(x))


class HMMCPretraining(HMMC):
    """Pre-training; it scores as HMMC does, zero-shot.

    A batch's text is the title. A second text, the tags, comes as `batch.extras["tag_tokens"]` and
    `batch.extras["tag_mask"]` (B, L) where the recipe has `data.captions: tagged`; its losses are
    averaged with the title's, and without it the queue of tags stays as it is. (The released code
    counts tags for one data set's name only, other sets train as with `data.captions: one`: finding
    33.) Keys and masked words are made in training mode only, as features, so that the loss, which
    also pushes the keys, has the rows of all processes.
    """

    Settings = HMMCPretrainingSettings

    def __init__(self, backbone: Backbone, settings: HMMCPretrainingSettings):
        super().__init__(backbone, settings)
        backbone.logit_scale.requires_grad_(False)  # the contrast has a constant temperature
        width = backbone.width
        self.projector = Perceptron(width, settings.projector_width)
        self.predictor = Perceptron(width, settings.projector_width)
        vocabulary, self.mask_token = vocabulary_of(backbone.tokenizer)
        self.word_head = WordHead(width, vocabulary)
        ids: Any = {"mask_token": self.mask_token, "vocabulary": vocabulary}
        self.mask_words: Any = partial(mask_words, share=settings.mask_share, **ids)
        self.slow: Any = deepcopy(self._fast()).requires_grad_(False)
        sizes = dict.fromkeys(("video", "title", "tag"), settings.queue_size)
        sizes |= dict.fromkeys(("frames", "projected"), settings.frame_queue_size)
        queues = {name: NegativeQueue(width, size) for name, size in sizes.items()}
        self.queues: Any = nn.ModuleDict(queues)

    def _fast(self) -> nn.ModuleDict:
        """What the momentum encoders follow."""
        fast = {"backbone": self.backbone, "temporal": self.temporal, "projector": self.projector}
        return nn.ModuleDict(fast)

    def before_step(self) -> None:
        """Momentum update: it comes before the keys of the step."""
        momentum_update(self.slow, self._fast(), self.settings.momentum)

    def encode_text(self, batch: TextVideoBatch) -> TextFeatures:
        """As HMMC; in training mode also, per text ("title", "tag"), extras `<text>` and
        `<text>_key` (B, D), `<text>_masked` (B, L, D), words of the masked text, and
        `<text>_labels` (B, L) int64."""
        text = super().encode_text(batch)
        if not self.training:
            return text
        seed = batch.seed
        if seed is None:  # no loader made this batch
            seed = torch.randint(2**62, (len(batch),), device=batch.tokens.device)
        texts = {"title": (batch.tokens, batch.token_mask)}
        if "tag_tokens" in batch.extras:
            texts["tag"] = batch.extras["tag_tokens"], batch.extras["tag_mask"]
        for number, (name, (tokens, mask)) in enumerate(texts.items()):
            is_title = name == "title"
            sentence = text.sentence if is_title else self.backbone.encode_text(tokens, mask)[1]
            with torch.no_grad():
                key = self.slow["backbone"].encode_text(tokens, mask)[1]
            draws = uniform(seed + number, 3, tokens.shape[1])
            masked, labels = self.mask_words(tokens, mask, draws)
            words = self.backbone.encode_text(masked, mask)[0]
            extras = {"": sentence, "_key": key, "_masked": words, "_labels": labels}
            text.extras |= {f"{name}{part}": tensor for part, tensor in extras.items()}
        return text

    def encode_video(self, batch: TextVideoBatch) -> VideoFeatures:
        """As HMMC; in training mode also extras `video_key` (B, D) and `frame_keys` (B, F, D)."""
        video = super().encode_video(batch)
        if not self.training:
            return video
        mask = self.counted(batch.frame_mask)
        with torch.no_grad():
            frames = self.slow["backbone"].encode_frames(batch.frames)
            video.extras["frame_keys"] = frames
            video.extras["video_key"] = mean_frame(self.slow["temporal"](frames, mask), mask)
        return video

    def loss(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> Tensors:
        """Weighted sum of FAM, VTM, FTM and MLM against the queues as they are; then the keys are
        pushed."""
        choice, mask = self.settings, self.counted(video.mask)
        negatives = {name: queue.negatives() for name, queue in self.queues.items()}
        # here and not in `encode_video`: BatchNorm sees the rows of all chunks and processes
        projected = self.predictor.on_valid(self.projector.on_valid(video.frames, mask), mask)
        with torch.no_grad():
            projected_keys = self.slow["projector"].on_valid(video.extras["frame_keys"], mask)
        frames = projected, projected_keys, negatives["projected"], mask
        fam = neighbour_frames(*frames, temperature=choice.temperature)
        texts: list[str] = [name for name in ("title", "tag") if name in text.extras]
        by_text = [self._text_losses(name, text.extras, video, negatives) for name in texts]
        vtm, ftm, mlm = (sum(losses) / len(texts) for losses in zip(*by_text, strict=True))
        self.queues["frames"].push(video.extras["frame_keys"].flatten(0, 1), mask.flatten())
        self.queues["projected"].push(projected_keys.flatten(0, 1), mask.flatten())
        self.queues["video"].push(video.extras["video_key"])
        for name in texts:
            self.queues[name].push(text.extras[f"{name}_key"])
        loss = choice.neighbour_weight * fam + choice.video_weight * vtm
        loss = loss + choice.frame_weight * ftm + choice.language_weight * mlm
        return {"loss": loss, "fam": fam, "vtm": vtm, "ftm": ftm, "mlm": mlm}

    def own_signs(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> Tensors:
        """As HMMC; also the share of masked words that are guessed (%), that of the commonest of
        them, and how far the momentum encoders are behind (% of the length of the weights)."""
        tokens, mask = batch.tokens, batch.token_mask
        draws = torch.rand(len(tokens), 3, tokens.shape[1]).to(tokens.device)
        masked, labels = self.mask_words(tokens, mask, draws)
        chosen = labels != UNMASKED
        guessed = self.word_head(self.backbone.encode_text(masked, mask)[0]).argmax(-1)
        _, counts = labels[chosen].unique(return_counts=True)
        pairs = list(zip(self._fast().parameters(), self.slow.parameters(), strict=True))
        behind = sum((fast - slow).square().sum() for fast, slow in pairs)
        length = sum(fast.square().sum() for fast, _ in pairs)
        return super().own_signs(text, video, batch) | {
            "masked words guessed (%)": 100 * (guessed == labels)[chosen].float().mean(),
            "the commonest of them (%)": 100 * counts.max() / counts.sum(),
            "momentum encoders behind (%)": 100 * (behind / length).sqrt(),
        }

    def _text_losses(self, name: str, text, video, negatives) -> tuple[Tensor, Tensor, Tensor]:
        """VTM, FTM and MLM of one text."""
        cold = {"temperature": self.settings.temperature}
        words = (text[name], text[f"{name}_key"], negatives[name])
        frames = (video.frames, video.extras["frame_keys"], negatives["frames"])
        to_text = queue_contrast(video.video, *words[1:], **cold)
        to_video = queue_contrast(words[0], video.extras["video_key"], negatives["video"], **cold)
        ftm = frame_text(*frames, *words, self.counted(video.mask), **cold)
        masked, labels = text[f"{name}_masked"], text[f"{name}_labels"]
        mlm = self.word_head.loss(masked, labels, self.settings.mask_share)
        return to_text + to_video, ftm, mlm
