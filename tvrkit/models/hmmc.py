"""HMMC: "End-to-End Pre-Training With Hierarchical Matching and Momentum Contrast for Text-Video
Retrieval" (Shen et al., IEEE TIP 2023).

Video and text match at two levels: the video as a whole (VTM) and each of its frames (FTM).
Fine-tuning contrasts within the batch. Pre-training contrasts with queues of keys from momentum
encoders, and adds agreement of neighbouring frames (FAM) and masked language modelling (MLM).
"""

from __future__ import annotations

from typing import Literal

import torch
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures, positives
from tvrkit.losses.contrastive import (
    frame_matching,
    frame_text,
    info_nce,
    neighbour_frames,
    queue_contrast,
)
from tvrkit.models.method import Method
from tvrkit.models.momentum import NegativeQueue, freeze_copy, momentum_update
from tvrkit.models.similarity import topk_frame_similarity
from tvrkit.models.temporal import TemporalTransformer
from tvrkit.settings import settings

RELEASED_SCALE = 100.0  # constant factor on the scores in the released loss (finding 23)
MASK_CHARACTER = (
    "*</w>"  # stands for [MASK] in CLIP's vocabulary, which has none; captions hardly use it
)
UNMASKED = -100  # label of tokens that are not to be predicted
KEPT_AS_MASK, REPLACED = (
    0.8,
    0.1,
)  # of the chosen words; the rest stays as it is (Devlin et al., 2019)
BERT_EPS = 1e-12  # of the prediction head's LayerNorm


@settings
class EncoderSettings:
    """What pre-training and fine-tuning share, so that one starts from the other's weights.

    Attributes:
        temporal_layers: blocks of the temporal transformer.
        max_frames: positions of the temporal transformer.
        top_frames: k, the best frames that count in the score.
        fidelity: "released" = the numbers of the released code, "corrected" = findings 22 and 23
            repaired.
    """

    temporal_layers: int = 4
    max_frames: int = 48
    top_frames: int = 2
    fidelity: Literal["released", "corrected"] = "corrected"


@settings
class Settings(EncoderSettings):
    """Fine-tuning.

    Attributes:
        video_weight: of VTM.
        frame_weight: of FTM.
    """

    video_weight: float = 0.85
    frame_weight: float = 0.15


@settings
class PretrainingSettings(EncoderSettings):
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

    neighbour_weight: float = 0.05
    video_weight: float = 0.45
    frame_weight: float = 0.45
    language_weight: float = 0.05
    momentum: float = 0.99
    temperature: float = 0.07
    queue_size: int = 1024
    frame_queue_size: int = 4096
    projector_width: int = 4096
    mask_share: float = 0.15


class HMMC(Method):
    """Fine-tuning, and the score of both."""

    Settings = Settings

    def __init__(self, backbone: nn.Module, settings: EncoderSettings):
        super().__init__(backbone, settings)
        self.corrected = settings.fidelity == "corrected"
        layers, positions = settings.temporal_layers, settings.max_frames
        self.temporal = TemporalTransformer.from_clip(backbone, layers, positions)
        if not self.corrected:
            backbone.logit_scale.requires_grad_(False)

    def encode_text(self, batch: TextVideoBatch) -> TextFeatures:
        """Words and the sentence, as the backbone gives them."""
        words, sentence = self.backbone.encode_text(batch.tokens, batch.token_mask)
        return TextFeatures(sentence, words, batch.token_mask, batch.token_weight)

    def encode_video(self, batch: TextVideoBatch) -> VideoFeatures:
        """CLIP's frames f, and the video: mean over (valid) frames of nrm(seqTransf(f))."""
        frames = self.backbone.encode_frames(batch.frames)
        return VideoFeatures(
            self._video(self.temporal, frames, batch.frame_mask), frames, batch.frame_mask
        )

    def _video(self, temporal: nn.Module, frames: Tensor, mask: Tensor) -> Tensor:
        if not self.corrected:  # padded frames join in (finding 22)
            mask = torch.ones_like(mask)
        seen = F.normalize(temporal(frames, mask), dim=-1) * mask[..., None]
        return seen.sum(dim=1) / mask.sum(dim=1, keepdim=True)

    def _frame_mask(self, video: VideoFeatures) -> Tensor | None:
        return video.mask if self.corrected else None

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """Cosine with the video, plus the mean cosine with its `top_frames` best frames."""
        frames = topk_frame_similarity(
            text.sentence, video.frames, self._frame_mask(video), k=self.settings.top_frames
        )
        return _cosine(text.sentence, video.video) + frames

    def loss(
        self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch
    ) -> dict[str, Tensor]:
        """video_weight VTM + frame_weight FTM, each the sum of both directions' cross entropies."""
        same = positives(batch.video_index)
        scale = self.backbone.logit_scale.exp() if self.corrected else RELEASED_SCALE
        sentence, frames = F.normalize(text.sentence, dim=-1), F.normalize(video.frames, dim=-1)
        by_frame = torch.einsum("ad,bfd->abf", sentence, frames)
        vtm = 2 * info_nce(_cosine(text.sentence, video.video), logit_scale=scale, positives=same)
        ftm = frame_matching(by_frame, self._frame_mask(video), logit_scale=scale, positives=same)
        loss = self.settings.video_weight * vtm + self.settings.frame_weight * ftm
        return {"loss": loss, "vtm": vtm, "ftm": ftm}

    @torch.no_grad()
    def explain(self, text: TextFeatures, video: VideoFeatures) -> dict[str, Tensor]:
        """What the score looks at, for B matched pairs.

        Returns:
            `frame_text` (B, F): cosine of each frame with the sentence, 0 where padded;
            `frame_counted` (B, F)
            bool: the best frames that count in the score.
        """
        cosine = torch.cosine_similarity(video.frames, text.sentence[:, None], dim=-1)
        ranked = cosine.masked_fill(~video.mask, -torch.inf)
        best = ranked.topk(min(self.settings.top_frames, cosine.shape[1]), dim=1).indices
        counted = torch.zeros_like(video.mask).scatter(1, best, True) & video.mask
        return {"frame_text": cosine * video.mask, "frame_counted": counted}


class HMMCPretraining(HMMC):
    """Pre-training; it scores as HMMC does, zero-shot.

    A batch's text is the title. A second text, the tags, comes as `batch.extras["tag_tokens"]` and
    `batch.extras["tag_mask"]` (B, L) where the recipe has `data.captions: tagged`; its losses are
    averaged with the title's, and without it the queue of tags stays as it is. Keys and masked
    words are made in training mode only, as features, so that the loss, which also pushes the keys,
    has the rows of all processes.
    """

    Settings = PretrainingSettings

    def __init__(self, backbone: nn.Module, settings: PretrainingSettings):
        super().__init__(backbone, settings)
        backbone.logit_scale.requires_grad_(False)  # the contrast has a constant temperature
        width = backbone.width
        self.projector = perceptron(width, settings.projector_width)
        self.predictor = perceptron(width, settings.projector_width)
        vocabulary, self.mask_token = vocabulary_of(backbone.tokenizer)
        self.word_head = WordHead(width, vocabulary)
        self.slow = nn.ModuleDict({name: freeze_copy(fast) for name, fast in self._fast().items()})
        sizes = dict.fromkeys(("video", "title", "tag"), settings.queue_size)
        sizes |= dict.fromkeys(("frames", "projected"), settings.frame_queue_size)
        self.queues = nn.ModuleDict(
            {name: NegativeQueue(width, size) for name, size in sizes.items()}
        )

    def _fast(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "temporal": self.temporal, "projector": self.projector}

    def before_step(self) -> None:
        """Momentum update: it comes before the keys of the step."""
        for name, fast in self._fast().items():
            momentum_update(self.slow[name], fast, self.settings.momentum)

    def encode_text(self, batch: TextVideoBatch) -> TextFeatures:
        """As HMMC; in training mode also, per text ("title", "tag"), extras `<text>` and
        `<text>_key` (B, D), `<text>_masked` (B, L, D), words of the masked text, and
        `<text>_labels` (B, L) int64."""
        text = super().encode_text(batch)
        if not self.training:
            return text
        text.extras |= self._contrasted("title", batch.tokens, batch.token_mask, text.sentence)
        if "tag_tokens" in batch.extras:
            tokens, mask = batch.extras["tag_tokens"], batch.extras["tag_mask"]
            text.extras |= self._contrasted(
                "tag", tokens, mask, self.backbone.encode_text(tokens, mask)[1]
            )
        return text

    def _contrasted(
        self, name: str, tokens: Tensor, mask: Tensor, sentence: Tensor
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            key = self.slow["backbone"].encode_text(tokens, mask)[1]
        ids = {"mask_token": self.mask_token, "vocabulary": self.word_head.size}
        masked, labels = mask_words(tokens, mask, share=self.settings.mask_share, **ids)
        words = self.backbone.encode_text(masked, mask)[0]
        return {
            name: sentence,
            f"{name}_key": key,
            f"{name}_masked": words,
            f"{name}_labels": labels,
        }

    def encode_video(self, batch: TextVideoBatch) -> VideoFeatures:
        """As HMMC; in training mode also extras `video_key` (B, D), `frame_keys`, `projected` and
        `projected_keys` (B, F, D)."""
        video = super().encode_video(batch)
        if not self.training:
            return video
        mask = batch.frame_mask if self.corrected else torch.ones_like(batch.frame_mask)
        video.extras["projected"] = _on_valid(
            nn.Sequential(self.projector, self.predictor), video.frames, mask
        )
        with torch.no_grad():
            frames = self.slow["backbone"].encode_frames(batch.frames)
            video.extras["frame_keys"] = frames
            video.extras["video_key"] = self._video(self.slow["temporal"], frames, batch.frame_mask)
            video.extras["projected_keys"] = _on_valid(self.slow["projector"], frames, mask)
        return video

    def loss(
        self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch
    ) -> dict[str, Tensor]:
        """Weighted sum of FAM, VTM, FTM and MLM against the queues as they are; then the keys are
        pushed."""
        choice, frames = self.settings, (video.extras["projected"], video.extras["projected_keys"])
        negatives, mask = self.queues["projected"].negatives(), self._frame_mask(video)
        parts = {"fam": neighbour_frames(*frames, negatives, mask, temperature=choice.temperature)}
        texts = [name for name in ("title", "tag") if name in text.extras]
        by_text = [self._text_losses(name, text.extras, video) for name in texts]
        for name in ("vtm", "ftm", "mlm"):
            parts[name] = sum(losses[name] for losses in by_text) / len(by_text)
        self._push(texts, text, video)
        weights = (
            choice.neighbour_weight,
            choice.video_weight,
            choice.frame_weight,
            choice.language_weight,
        )
        loss = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
        return {"loss": loss, **parts}

    def _text_losses(
        self, name: str, text: dict[str, Tensor], video: VideoFeatures
    ) -> dict[str, Tensor]:
        cold = {"temperature": self.settings.temperature}
        negatives = {queue: self.queues[queue].negatives() for queue in (name, "video", "frames")}
        words = (text[name], text[f"{name}_key"], negatives[name])
        frames = (video.frames, video.extras["frame_keys"], negatives["frames"])
        to_text = queue_contrast(video.video, *words[1:], **cold)
        to_video = queue_contrast(words[0], video.extras["video_key"], negatives["video"], **cold)
        ftm = frame_text(*frames, *words, self._frame_mask(video), **cold)
        mlm = self.word_head.loss(text[f"{name}_masked"], text[f"{name}_labels"])
        return {"vtm": to_text + to_video, "ftm": ftm, "mlm": mlm}

    def _push(self, texts: list[str], text: TextFeatures, video: VideoFeatures) -> None:
        mask = video.mask if self.corrected else torch.ones_like(video.mask)
        self.queues["video"].push(video.extras["video_key"])
        self.queues["frames"].push(video.extras["frame_keys"][mask])
        self.queues["projected"].push(video.extras["projected_keys"][mask])
        for name in texts:
            self.queues[name].push(text.extras[f"{name}_key"])


class WordHead(nn.Module):
    """BERT's prediction head: scores of all words at one position.

    Args:
        width: of the text tower's words.
        size: of the vocabulary.
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        self.size = size
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=BERT_EPS)
        self.decoder = nn.Linear(width, size)

    def forward(self, words: Tensor) -> Tensor:
        """(..., size) float logits of words (..., D)."""
        return self.decoder(self.norm(F.gelu(self.dense(words))))

    def loss(self, words: Tensor, labels: Tensor) -> Tensor:
        """MLM: mean cross entropy over the positions of words (B, L, D) with a label; 0 if there is
        none."""
        chosen = labels != UNMASKED
        total = F.cross_entropy(self(words[chosen]), labels[chosen], reduction="sum")
        return total / chosen.sum().clamp(min=1)


def mask_words(
    tokens: Tensor, mask: Tensor, *, share: float, mask_token: int, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Choose words for MLM: 80 % of them become `mask_token`, 10 % a random one, 10 % stay.

    Only real words are chosen, never padding nor the first and last token (SOT and EOT, or CLS and
    SEP): 74 % of the released English targets are padding (finding 24). Draws come from torch's CPU
    generator.

    Args:
        tokens: (B, L) int64.
        mask: (B, L) bool, True on real tokens, which come first.
        share: of the words that are chosen, on average.
        mask_token: id.
        vocabulary: number of ids.

    Returns:
        tokens (B, L) with replacements, and labels (B, L) int64: the original id where chosen, else
        -100.
    """
    inner = mask.clone()
    inner[:, 0] = False
    inner[torch.arange(len(mask)), mask.sum(dim=1) - 1] = False
    draws = torch.rand(3, *tokens.shape).to(tokens.device)
    chosen = inner & (draws[0] < share)
    hidden = draws[1] < KEPT_AS_MASK
    swapped = ~hidden & (draws[1] < KEPT_AS_MASK + REPLACED)
    masked = tokens.masked_fill(chosen & hidden, mask_token)
    masked = torch.where(chosen & swapped, (draws[2] * vocabulary).long(), masked)
    return masked, tokens.masked_fill(~chosen, UNMASKED)


def vocabulary_of(tokenizer) -> tuple[int, int]:
    """Number of ids and the id of the mask token of an open_clip tokenizer."""
    if isinstance(tokenizer, HFTokenizer):
        return len(tokenizer.tokenizer), tokenizer.tokenizer.mask_token_id
    return tokenizer.vocab_size, tokenizer.encoder[MASK_CHARACTER]


def perceptron(width: int, inner: int) -> nn.Sequential:
    """HMMC's projector and predictor: two layers with BatchNorm between, D -> inner -> D."""
    return nn.Sequential(
        nn.Linear(width, inner), nn.BatchNorm1d(inner), nn.ReLU(), nn.Linear(inner, width)
    )


def _on_valid(module: nn.Module, frames: Tensor, mask: Tensor) -> Tensor:
    """`module` on the valid frames (B, F, D) only, so that padding stays out of BatchNorm; 0
    elsewhere."""
    return torch.zeros_like(frames).masked_scatter(
        mask[..., None], module(frames[mask]).to(frames.dtype)
    )


def _cosine(text: Tensor, video: Tensor) -> Tensor:
    return F.normalize(text, dim=-1) @ F.normalize(video, dim=-1).T
