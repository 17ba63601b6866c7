"""DMAE with NegNCE and TPM-CL: "Dual-Modal Attention-Enhanced Text-Video Retrieval with Triplet
Partial Margin Contrastive Learning" (Jiang et al., ACM MM 2023).

The score is a token-wise interaction with dual-modal attention: on the video side a word's second
look at the frame nearest to its best one, on the text side a double weight for nouns, verbs and
adjectives. The loss is NegNCE plus partial-order margins: a whole video and a whole caption match
better than their masked versions.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures, positives
from tvrkit.losses.contrastive import neg_nce
from tvrkit.models.method import Method
from tvrkit.models.similarity import MaskFill, second_look, token_interaction
from tvrkit.models.temporal import TemporalTransformer
from tvrkit.settings import choose, settings

Predictor = Literal["linear", "attention_sum", "attention_mean", "attention_max"]
# name: (the full score, the partial one); t sentence, g words weighed by the video, v video, ' =
# masked
MARGINS = {
    "sentence_video": ("t,v", "t,v'"),
    "grounded_video": ("g,v", "g,v'"),
    "grounded_text": ("g,v", "g',v"),
}
POOLING = {"attention_sum": torch.sum, "attention_mean": torch.mean, "attention_max": torch.amax}
RELEASED_SCALE = 100.0  # constant factor on the scores in the released loss
PREDICTOR_HEADS = 8


@settings
class Settings:
    """DMAE's choices. The paper's full method is the default.

    Attributes:
        interaction: "ti" (mean over tokens) or "wti" (learned weights) on the sentence, "att_*" on
            words as well.
        second_frame: visual attention, the half-weighted second look.
        textual_attention: nouns, verbs and adjectives count twice. Released code never finds any
            (finding 10).
        head: "meanP" (frames as they are) or "seqTransf" (temporal transformer first).
        temporal_layers: blocks of the temporal transformer.
        negative_weight: of NegNCE's hard negatives, gamma_2; 0 = InfoNCE.
        mining_margin: on the cosine scale; larger mines more negatives.
        partial_order: names of the TPM-CL margins that are on; empty = off.
        partial_margin: delta, by how much the full score has to win.
        masking_threshold: tau, the cumulative weight up to which tokens are masked.
        predictor: of the token weights that rank what is masked.
        max_words, max_frames: tokens per caption and frames per video that the predictor is built
            for.
        fidelity: "released" = the numbers of the released code, "corrected" = every finding
            repaired.
    """

    interaction: Literal["ti", "wti", "att_ti", "att_wti"] = "att_wti"
    second_frame: bool = True
    textual_attention: bool = True
    head: Literal["meanP", "seqTransf"] = "seqTransf"
    temporal_layers: int = 4
    negative_weight: float = 0.5
    mining_margin: float = 0.0
    partial_order: list[Literal["sentence_video", "grounded_video", "grounded_text"]] = (
        dataclasses.field(default_factory=lambda: list(MARGINS))
    )
    partial_margin: float = 0.6
    masking_threshold: float = 0.6
    predictor: Predictor = "linear"
    max_words: int = 32
    max_frames: int = 12
    fidelity: Literal["released", "corrected"] = "corrected"


class DMAE(Method):
    """The method; see the module and `Settings`. Features are L2-normalised when they leave
    `encode_*`."""

    Settings = Settings

    def __init__(self, backbone: nn.Module, settings: Settings):
        super().__init__(backbone, settings)
        self.corrected = settings.fidelity == "corrected"
        self.mask_fill: MaskFill = "exclude" if self.corrected else "zero"
        width, weighted = backbone.width, settings.interaction.endswith("wti")
        self.uses_words = settings.interaction.startswith("att")
        # without bias: the softmax over tokens cancels it
        self.word_weight = nn.Linear(width, 1, bias=False) if weighted and self.uses_words else None
        self.frame_weight = nn.Linear(width, 1, bias=False) if weighted else None
        self.temporal = None
        if settings.head == "seqTransf":
            self.temporal = TemporalTransformer.from_clip(
                backbone, settings.temporal_layers, settings.max_frames
            )
        self.partial_order = None
        if settings.partial_order:
            self.partial_order = PartialOrder(
                width,
                settings.max_words,
                settings.max_frames,
                predictor=settings.predictor,
                margins=tuple(settings.partial_order),
                margin=settings.partial_margin,
                threshold=settings.masking_threshold,
                mask_aware=self.corrected,
                normalise_partial=self.corrected,
                straight_through=self.corrected,
                mask_fill=self.mask_fill,
            )

    @property
    def released_temporal(self) -> TemporalTransformer | None:
        """The temporal transformer where it reads normalised frames, as released."""
        return None if self.corrected else self.temporal

    def encode_text(self, batch: TextVideoBatch) -> TextFeatures:
        """Normalised sentence and words; extras: `word_weight` (B, L), what each word counts in the
        score."""
        words, sentence = self.backbone.encode_text(batch.tokens, batch.token_mask)
        words, sentence = F.normalize(words, dim=-1), F.normalize(sentence, dim=-1)
        boosted = self.settings.textual_attention and self.corrected
        attention = batch.token_weight * batch.token_mask if boosted else batch.token_mask
        weight = token_weight(words, attention, self.word_weight, renormalise=self.corrected)
        return TextFeatures(
            sentence, words, batch.token_mask, batch.token_weight, {"word_weight": weight}
        )

    def encode_video(self, batch: TextVideoBatch) -> VideoFeatures:
        """Frames behind the head. Extras: `frame_weight`, `second_gain` and `second_frame`, all (B,
        F), and `frames_before` (B, F, D), the normalised CLIP frames that released TPM-CL masks
        before its transformer.

        The released head normalises before the transformer and not after it. Unit frames drown in
        blocks that start from CLIP's, and scores leave the cosine scale; the corrected one is
        CLIP4Clip's: raw in, normalised out.
        """
        frames, mask, extras = self.backbone.encode_frames(batch.frames), batch.frame_mask, {}
        if self.temporal is not None and self.corrected:
            frames = self.temporal(frames, mask)
        frames = F.normalize(frames, dim=-1)
        if self.released_temporal is not None:
            extras["frames_before"] = frames
            frames = self.released_temporal(frames, mask)
        extras["frame_weight"] = token_weight(frames, mask, self.frame_weight)
        if self.settings.second_frame:
            look = second_look(frames, mask, mask_fill=self.mask_fill)
            extras["second_gain"], extras["second_frame"] = look
        return VideoFeatures(None, frames, mask, extras)

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """The interaction of the sentence; for att_* the mean of the sentence's and the words'."""
        extras = video.extras
        options = {
            "video_weight": extras["frame_weight"],
            "second_frame": self.settings.second_frame
            and (extras["second_gain"], extras["second_frame"]),
            "mask_fill": self.mask_fill,
        }
        sentence, whole = text.sentence[:, None], torch.ones_like(text.mask[:, :1])
        score = token_interaction(sentence, video.frames, whole, video.mask, **options)
        if not self.uses_words:
            return score
        options["text_weight"] = text.extras["word_weight"]
        return (
            score + token_interaction(text.words, video.frames, text.mask, video.mask, **options)
        ) / 2

    def contrast(
        self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch, **options
    ) -> Tensor:
        """NegNCE over the batch; `options` of `neg_nce` win over the settings."""
        options = {"margin": self.settings.mining_margin, **options}
        return neg_nce(
            self.similarity(text, video),
            logit_scale=self.backbone.logit_scale.exp() if self.corrected else RELEASED_SCALE,
            negative_weight=self.settings.negative_weight,
            clamp=None if self.corrected else 1e-6,
            positives=positives(batch.video_index),
            **options,
        )

    def loss(
        self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch
    ) -> dict[str, Tensor]:
        """NegNCE over the batch plus the partial-order margins of its matched pairs."""
        parts = {"neg_nce": self.contrast(text, video, batch)}
        if self.partial_order is not None:
            pairs = self._pairs(text, video)
            parts |= self.partial_order(
                *pairs, temporal=self.released_temporal, weigh=self.frame_weight
            )
        return {"loss": sum(parts.values()), **parts}

    @torch.no_grad()
    def explain(self, text: TextFeatures, video: VideoFeatures) -> dict[str, Tensor]:
        """What the score and TPM-CL look at, for B matched pairs.

        Returns:
            `word_weight` (B, L) and `frame_weight` (B, F): shares in the score; `word_frame` (B, L,
            F): cosine map, 0 at padding; `best_frame` (B, L): where each word looks first;
            `second_frame`, `second_gain` (B, F): where a word goes on to look from there, and how
            much it counts; from TPM-CL `partial_word_weight`, `partial_frame_weight` and
            `word_kept`, `frame_kept` (1 = kept, 0 = masked), and `order_<margin>` (B, 3), see
            `PartialOrder.order`.
        """
        text, video = text.detach(), video.detach()
        grid = text.mask[:, :, None] & video.mask[:, None, :]
        product = torch.einsum("bld,bfd->blf", text.words, video.frames)
        maps = {
            "word_weight": text.extras["word_weight"],
            "frame_weight": video.extras["frame_weight"],
            "word_frame": product.masked_fill(~grid, 0.0),
            "best_frame": product.masked_fill(~video.mask[:, None], -torch.inf).argmax(dim=2),
        }
        if self.settings.second_frame:
            maps |= {key: video.extras[key] for key in ("second_frame", "second_gain")}
        if self.partial_order is not None:
            pairs = self._pairs(text, video)
            maps |= self.partial_order.select(*pairs)[1]
            order = self.partial_order.order(
                *pairs, temporal=self.released_temporal, weigh=self.frame_weight
            )
            maps |= {f"order_{name}": scores for name, scores in order.items()}
        return maps

    def _pairs(self, text: TextFeatures, video: VideoFeatures) -> tuple[Tensor, ...]:
        frames = video.extras.get("frames_before", video.frames)
        return text.sentence, text.words, frames, text.mask, video.mask


def token_weight(
    tokens: Tensor, mask: Tensor, head: nn.Linear | None, *, renormalise: bool = True
) -> Tensor:
    """What each token counts in the interaction: mask / sum(mask) (TI), or softmax(head(tokens)) x
    mask (WTI).

    Args:
        tokens: (N, L, D) float.
        mask: (N, L), 0 = padding, 2 = boosted by textual attention.
        head: the learned weight, D -> 1; None = TI.
        renormalise: the weights sum to 1 although words are boosted; released: they do not (finding
            9).

    Returns:
        (N, L) float, 0 at padding.
    """
    if head is None:
        return mask / mask.sum(dim=1, keepdim=True)
    weight = head(tokens)[..., 0].masked_fill(mask == 0, -torch.inf).softmax(dim=1) * mask
    return weight / weight.sum(dim=1, keepdim=True) if renormalise else weight


class TokenWeightPredictor(nn.Module):
    """TPM-CL's cross-modal predictor: how much each token (key) matters, given the other modality
    (queries).

        linear:       a = sigmoid(W4 gelu(W2 LN([Wqk q; k]))),  a / sum(a)
        attention_*:  a = softmax_k(w . agg_heads softmax_k(q k^T)),  agg one of sum, mean, max

    The released modules hold more projections that take no part in the result; they are left out.

    Args:
        kind: see above.
        width: D, a multiple of `heads`.
        queries, keys: their numbers of tokens, padding included.
        heads: groups of channels that attend on their own (attention_*).
    """

    def __init__(
        self, kind: Predictor, width: int, queries: int, keys: int, heads: int = PREDICTOR_HEADS
    ):
        super().__init__()
        choose("predictor", kind, Predictor.__args__)
        self.kind, self.queries, self.keys, self.heads = kind, queries, keys, heads
        if kind == "linear":
            self.qk_proj = nn.Linear(queries, keys, bias=False)
            self.attn_proj = nn.Sequential(
                nn.LayerNorm([keys, 2 * width]),
                nn.Linear(2 * width, width // 2, bias=False),
                nn.GELU(),
                nn.Linear(width // 2, 1, bias=False),
                nn.Sigmoid(),
            )
        else:
            self.attn_proj = nn.Linear(
                queries, 1, bias=False
            )  # the softmax cancels the released bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        query_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, n) weights that sum to 1.

        Args:
            query: (B, queries, D) float.
            key: (B, keys, D) float.
            query_mask, key_mask: (B, queries) and (B, keys) bool; given, padding neither acts nor
                gets weight. None = as released (finding 5).

        Raises:
            ValueError: another number of tokens than the predictor was built for.
        """
        if (query.shape[1], key.shape[1]) != (self.queries, self.keys):
            raise ValueError(
                f"token weights: expected {self.queries} query and {self.keys} key tokens, got {query.shape[1]}"
                f" and {key.shape[1]} (method.max_words and method.max_frames set them)"
            )
        query = query if query_mask is None else query * query_mask[..., None]
        key = key if key_mask is None else key * key_mask[..., None]
        if self.kind == "linear":
            mixed = self.qk_proj(query.transpose(1, 2)).transpose(1, 2)
            weight = self.attn_proj(torch.cat([mixed, key], dim=-1))[..., 0]
            weight = weight if key_mask is None else weight * key_mask
            return weight / weight.sum(dim=1, keepdim=True)
        return self._attend(query, key, query_mask, key_mask)

    def _attend(
        self, query: Tensor, key: Tensor, query_mask: Tensor | None, key_mask: Tensor | None
    ) -> Tensor:
        query, key = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key))
        logits = query @ key.transpose(-1, -2)  # (B, heads, queries, keys)
        if key_mask is not None:
            logits = logits.masked_fill(~key_mask[:, None, None], -torch.inf)
        pooled = POOLING[self.kind](logits.softmax(dim=-1), dim=1)
        if query_mask is not None:
            pooled = pooled * query_mask[..., None]
        logits = self.attn_proj(pooled.transpose(1, 2))[..., 0]
        return (logits if key_mask is None else logits.masked_fill(~key_mask, -torch.inf)).softmax(
            dim=-1
        )


def select_tokens(
    tokens: Tensor, weight: Tensor, threshold: float, *, straight_through: bool = False
) -> tuple[Tensor, Tensor]:
    """Mask the most important tokens: in order of falling weight, those whose cumulative weight
    stays below tau.

    Args:
        tokens: (B, n, D) float.
        weight: (B, n) float, sums to 1.
        threshold: tau in [0, 1].
        straight_through: the policy passes a gradient to `weight` (more weight, less kept), so that
            the predictor learns from what is masked. Released: none (finding 7).

    Returns:
        tokens (B, n, D) with the masked ones 0, and policy (B, n) float, 1 = kept, 0 = masked.
    """
    order = weight.argsort(dim=1, descending=True)
    kept = (weight.gather(1, order).cumsum(dim=1) >= threshold).to(tokens.dtype)
    policy = torch.zeros_like(kept).scatter(1, order, kept)
    if straight_through:
        policy = policy + (weight.detach() - weight)
    return tokens * policy[..., None], policy


class PartialOrder(nn.Module):
    """TPM-CL: partial-order margins between whole and masked modalities, on matched pairs only,
    O(B).

        M(a, b) = mean relu(delta - (a - b))
        sentence_video: (t, v) > (t, v');  grounded_video: (g, v) > (g, v');  grounded_text: (g, v)
            > (g', v)

    t is the sentence, g = nrm(sum of the words weighed by the video), v the frames; v' and g' lack
    their most important tokens. The released code scores all B x B pairs, uses the diagonal only,
    and pairs wrong samples in batches above 8 (findings 1 to 3); this is what it means to compute,
    at every batch size.

    Args:
        width: D.
        words, frames: L and F, padding included.
        predictor: kind of `TokenWeightPredictor`.
        margins: names of the margins that count.
        margin: delta.
        threshold: tau of `select_tokens`.
        mask_aware: padding neither acts in the predictors nor gets weight (released: False, finding
            5).
        normalise_partial: g' is normalised as g is (released: False, finding 6).
        straight_through: see `select_tokens` (released: False, finding 7).
        mask_fill: see `token_interaction` (released: "zero", finding 8).
    """

    def __init__(
        self,
        width: int,
        words: int,
        frames: int,
        *,
        predictor: Predictor = "linear",
        margins: tuple[str, ...] = tuple(MARGINS),
        margin: float = 0.6,
        threshold: float = 0.6,
        mask_aware: bool = True,
        normalise_partial: bool = True,
        straight_through: bool = True,
        mask_fill: MaskFill = "exclude",
    ):
        super().__init__()
        self.margins = [choose("margin", name, MARGINS) for name in margins]
        self.margin, self.threshold, self.mask_fill = margin, threshold, mask_fill
        self.mask_aware, self.normalise_partial = mask_aware, normalise_partial
        self.straight_through = straight_through
        self.word_predictor = TokenWeightPredictor(predictor, width, queries=frames, keys=words)
        self.frame_predictor = TokenWeightPredictor(predictor, width, queries=1, keys=frames)

    def forward(
        self, *pairs: Tensor, temporal: nn.Module | None = None, weigh: nn.Linear | None = None
    ):
        """Scalar margins by name; arguments as `scores`."""
        scores = self.scores(*pairs, temporal=temporal, weigh=weigh)
        names = {name: MARGINS[name] for name in self.margins}
        return {
            name: (self.margin - (scores[a] - scores[b])).relu().mean()
            for name, (a, b) in names.items()
        }

    def scores(
        self,
        sentence: Tensor,
        words: Tensor,
        frames: Tensor,
        word_mask: Tensor,
        frame_mask: Tensor,
        *,
        temporal: nn.Module | None = None,
        weigh: nn.Linear | None = None,
    ) -> dict[str, Tensor]:
        """The five scores (B,) behind the margins: "t,v", "t,v'", "g,v", "g,v'", "g',v".

        Args:
            sentence: (B, D) normalised.
            words: (B, L, D) normalised.
            frames: (B, F, D) normalised.
            word_mask, frame_mask: (B, L) and (B, F) bool.
            temporal: transformer that the masked frames (only they, as released) pass through.
            weigh: learned frame weight of WTI; None = TI.
        """
        (partial_words, partial), maps = self.select(sentence, words, frames, word_mask, frame_mask)
        if temporal is not None:
            partial = temporal(partial, frame_mask)
        weight = maps["partial_word_weight"][..., None]
        grounded = F.normalize((weight * words).sum(dim=1), dim=-1)
        grounded_partial = (weight * partial_words).sum(dim=1)
        if self.normalise_partial:
            grounded_partial = F.normalize(grounded_partial, dim=-1)
        texts = {"t": sentence, "g": grounded, "g'": grounded_partial}
        videos = {"v": frames, "v'": partial}

        def score(names):
            text, video = names.split(",")
            weight = token_weight(videos[video], frame_mask, weigh)
            return matched_interaction(
                texts[text], videos[video], frame_mask, weight, mask_fill=self.mask_fill
            )

        return {names: score(names) for names in ("t,v", "t,v'", "g,v", "g,v'", "g',v")}

    def order(self, *pairs: Tensor, **options) -> dict[str, Tensor]:
        """By margin (B, 3): the score of whole pairs, with half the threshold masked, and with all
        of it."""
        half = copy.copy(self)
        half.threshold = self.threshold / 2
        whole, partial = self.scores(*pairs, **options), half.scores(*pairs, **options)
        names = {name: MARGINS[name] for name in self.margins}
        return {
            name: torch.stack([whole[a], partial[b], whole[b]], dim=1)
            for name, (a, b) in names.items()
        }

    def select(self, sentence, words, frames, word_mask, frame_mask):
        """What is masked: ((words', frames'), weights and policies by name); arguments as
        `scores`."""
        masks = (frame_mask, word_mask) if self.mask_aware else (None, None)
        word_weight = self.word_predictor(frames, words, *masks)
        frame_weight = self.frame_predictor(sentence[:, None], frames, None, masks[0])
        options = {"threshold": self.threshold, "straight_through": self.straight_through}
        partial_words, word_kept = select_tokens(words, word_weight, **options)
        partial_frames, frame_kept = select_tokens(frames, frame_weight, **options)
        maps = {"partial_word_weight": word_weight, "partial_frame_weight": frame_weight}
        return (partial_words, partial_frames), {
            **maps,
            "word_kept": word_kept,
            "frame_kept": frame_kept,
        }


def matched_interaction(
    text: Tensor, video: Tensor, mask: Tensor, weight: Tensor, *, mask_fill: MaskFill = "zero"
) -> Tensor:
    """`token_interaction` of one-token texts with their own videos only: (max_v L + sum_v q L) / 2.

    Args:
        text: (B, D) float.
        video: (B, F, D) float.
        mask: (B, F).
        weight: (B, F) float, q.
        mask_fill: see `token_interaction`.

    Returns:
        (B,) float.
    """
    product = torch.einsum("bd,bfd->bf", text, video).masked_fill(mask == 0, 0.0)
    best = product if mask_fill == "zero" else product.masked_fill(mask == 0, -torch.inf)
    return (best.amax(dim=1) + (product * weight).sum(dim=1)) / 2
