"""TPM-CL, DMAE's triplet partial margin contrastive learning (Jiang et al., ACM MM 2023): a whole
video and a whole caption match better than their versions without their most important tokens."""

from dataclasses import field
from typing import Any, Literal, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from tvrkit.data.batch import inner_words
from tvrkit.files import expect
from tvrkit.models.method import Tensors
from tvrkit.models.similarity import MaskFill, token_weight
from tvrkit.settings import Share, settings

Margin = Literal["sentence_video", "grounded_video", "grounded_text"]
# name: (the full score, the partial one); t sentence, g words weighed by the video, v video,
# ' = masked
MARGINS: dict[Margin, tuple[str, str]] = {
    "sentence_video": ("t,v", "t,v'"),
    "grounded_video": ("g,v", "g,v'"),
    "grounded_text": ("g,v", "g',v"),
}
SCORES = ("t,v", "t,v'", "g,v", "g,v'", "g',v")  # in the order of their making
Predictor = Literal["linear", "attention_sum", "attention_mean", "attention_max"]
POOLING: dict[str, Any] = {
    "attention_sum": torch.sum,
    "attention_mean": torch.mean,
    "attention_max": torch.amax,
}
PREDICTOR_HEADS = 8  # groups of channels that attend on their own (attention_*)
Mask = Tensor | None  # None = every token counts


@settings
class TPMSettings:
    """TPM-CL's choices.

    Attributes:
        partial_order: names of the margins that are on; empty = off.
        partial_margin: delta, by how much the full score has to win.
        masking_threshold: tau, the cumulative weight up to which tokens are masked.
        mask_crossing: the token whose weight crosses tau is masked too. Without it nothing is,
            where one token holds more than tau.
        mask_ends: start and end tokens are weighed and masked like words.
        straight_through: masking passes a gradient to the predictors (finding 7). Released code
            never does.
        predictor: of the token weights that rank what is masked.
        max_words, max_frames: tokens per caption and frames per video that the predictor is built
            for.
        fidelity: "released" = the numbers of the released code, "corrected" = every finding
            repaired.
    """

    partial_order: list[Margin] = field(default_factory=lambda: list(MARGINS))
    partial_margin: float = 0.6
    masking_threshold: Share = 0.6
    mask_crossing: bool = False
    mask_ends: bool = True
    straight_through: bool = True
    predictor: Predictor = "linear"
    max_words: PositiveInt = 32
    max_frames: PositiveInt = 12
    fidelity: Literal["released", "corrected"] = "corrected"


class Pairs(NamedTuple):
    """B matched pairs, all features normalised.

    Attributes:
        sentence: (B, D) float.
        words: (B, L, D) float.
        frames: (B, F, D) float.
        word_mask, frame_mask: (B, L) and (B, F) bool.
    """

    sentence: Tensor
    words: Tensor
    frames: Tensor
    word_mask: Tensor
    frame_mask: Tensor


class TokenWeightPredictor(nn.Module):
    """TPM-CL's cross-modal predictor: how much each token (key) matters, given the other modality
    (queries).

        linear:       a = sigmoid(W4 gelu(W2 LN([Wqk q; k]))),  a / sum(a)
        attention_*:  a = softmax_k(w . agg_heads softmax_k(q k^T)),  agg one of sum, mean, max

    The released modules hold more projections that take no part in the result; they are left out.

    Args:
        kind: see above.
        width: D, a multiple of `PREDICTOR_HEADS`.
        queries, keys: their numbers of tokens, padding included.
    """

    def __init__(self, kind: Predictor, width: int, queries: int, keys: int):
        super().__init__()
        self.kind, self.queries, self.keys = kind, queries, keys
        if kind != "linear":  # without bias: the softmax cancels the released one
            self.attn_proj: nn.Module = nn.Linear(queries, 1, bias=False)
            return
        self.qk_proj = nn.Linear(queries, keys, bias=False)
        self.attn_proj = nn.Sequential(
            nn.LayerNorm([keys, 2 * width]),
            nn.Linear(2 * width, width // 2, bias=False),
            nn.GELU(),
            nn.Linear(width // 2, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(
        self, query: Tensor, key: Tensor, query_mask: Mask = None, key_mask: Mask = None
    ) -> Tensor:
        """(B, n) weights that sum to 1.

        Args:
            query: (B, queries, D) float.
            key: (B, keys, D) float.
            query_mask, key_mask: (B, queries) and (B, keys) bool; padding neither acts nor gets
                weight. None = every token counts (padding too, as released: finding 5).

        Raises:
            ValueError: another number of tokens than the predictor was built for.
        """
        tokens, built = (query.shape[1], key.shape[1]), (self.queries, self.keys)
        got = "{} and {} (method.max_words and method.max_frames set them)".format(*tokens)
        expect(tokens == built, "token weights", "{} query and {} key tokens".format(*built), got)
        acts = torch.ones_like(query[..., 0]) if query_mask is None else query_mask
        real = torch.ones_like(key[..., 0]) if key_mask is None else key_mask
        weigh = self._linear if self.kind == "linear" else self._attention
        return weigh(query * acts[..., None], key * real[..., None], acts, real)

    def _linear(self, query: Tensor, key: Tensor, acts: Tensor, real: Tensor) -> Tensor:
        mixed = self.qk_proj(query.transpose(1, 2)).transpose(1, 2)
        weight = self.attn_proj(torch.cat([mixed, key], dim=-1))[..., 0] * real
        return weight / weight.sum(dim=1, keepdim=True)

    def _attention(self, query: Tensor, key: Tensor, acts: Tensor, real: Tensor) -> Tensor:
        query, key = (x.unflatten(-1, (PREDICTOR_HEADS, -1)).transpose(1, 2) for x in (query, key))
        logits = query @ key.transpose(-1, -2)  # (B, heads, queries, keys)
        attention = logits.masked_fill(real[:, None, None] == 0, -torch.inf).softmax(dim=-1)
        pooled = POOLING[self.kind](attention, dim=1) * acts[..., None]
        logits = self.attn_proj(pooled.transpose(1, 2))[..., 0]
        return logits.masked_fill(real == 0, -torch.inf).softmax(dim=-1)


def select_tokens(
    tokens: Tensor,
    weight: Tensor,
    threshold: float,
    *,
    mask_crossing: bool = False,
    straight_through: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mask the most important tokens: in order of falling weight, those whose cumulative weight
    stays below tau.

    Args:
        tokens: (B, n, D) float.
        weight: (B, n) float, sums to 1.
        threshold: tau in [0, 1].
        mask_crossing: the one that crosses tau is masked too.
        straight_through: the policy passes a gradient to `weight` (more weight, less kept), so that
            the predictor learns from what is masked. Released: none (finding 7).

    Returns:
        tokens (B, n, D) with the masked ones 0, and policy (B, n) float, 1 = kept, 0 = masked.
    """
    order = weight.argsort(dim=1, descending=True)
    ranked = weight.gather(1, order)
    cumulative = ranked.cumsum(dim=1) - (ranked if mask_crossing else 0.0)
    kept = (cumulative >= threshold).to(tokens.dtype)
    policy = torch.zeros_like(kept).scatter(1, order, kept)
    if straight_through:
        policy = policy + (weight.detach() - weight)
    return tokens * policy[..., None], policy


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


class PartialOrder(nn.Module):
    """Partial-order margins between whole and masked modalities, on matched pairs only, O(B).

        M(a, b) = mean relu(delta - (a - b))
        sentence_video: (t, v) > (t, v');  grounded_video: (g, v) > (g, v');
        grounded_text: (g, v) > (g', v)

    t is the sentence, g = nrm(sum of the words weighed by the video), v the frames; v' and g' lack
    their most important tokens. The released code scores all B x B pairs, uses the diagonal only,
    and pairs wrong samples in batches above 8 (findings 1 to 3); this is what it means to compute,
    at every batch size.

    Args:
        width: D.
        settings: see `TPMSettings`; DMAE's are one.

    Attributes:
        mask_aware: padding neither acts in the predictors nor gets weight (released: False, finding
            5).
        normalise_partial: g' is normalised as g is (released: False, finding 6).
        straight_through: see `select_tokens` (released: False, finding 7).
        mask_fill: see `token_interaction` (released: "zero", finding 8).
    """

    def __init__(self, width: int, settings: TPMSettings):
        super().__init__()
        self.margins = {name: MARGINS[name] for name in settings.partial_order}
        self.margin, self.threshold = settings.partial_margin, settings.masking_threshold
        corrected = settings.fidelity == "corrected"
        self.mask_aware = self.normalise_partial = corrected
        self.straight_through = corrected and settings.straight_through
        self.mask_crossing, self.mask_ends = settings.mask_crossing, settings.mask_ends
        self.mask_fill: MaskFill = "exclude" if corrected else "zero"
        kind, words, frames = settings.predictor, settings.max_words, settings.max_frames
        self.word_predictor = TokenWeightPredictor(kind, width, queries=frames, keys=words)
        self.frame_predictor = TokenWeightPredictor(kind, width, queries=1, keys=frames)

    def forward(self, pairs: Pairs, **options) -> Tensors:
        """Scalar margins by name; options as of `scores`."""
        scores = self.scores(pairs, **options)
        return {
            name: (self.margin - (scores[whole] - scores[masked])).relu().mean()
            for name, (whole, masked) in self.margins.items()
        }

    def scores(
        self,
        pairs: Pairs,
        *,
        temporal: nn.Module | None = None,
        weigh: nn.Linear | None = None,
        threshold: float | None = None,
    ) -> Tensors:
        """The five scores (B,) behind the margins: "t,v", "t,v'", "g,v", "g,v'", "g',v".

        Args:
            pairs: see `Pairs`.
            temporal: transformer that the masked frames (only they, as released) pass through.
            weigh: learned frame weight of WTI; None = TI.
            threshold: in place of the settings' tau.
        """
        masked, maps = self.select(pairs, threshold)
        videos = {"v": pairs.frames, "v'": masked.frames}
        if temporal is not None:
            videos["v'"] = temporal(masked.frames, pairs.frame_mask)
        weight = maps["partial_word_weight"][..., None]
        grounded = F.normalize((weight * pairs.words).sum(dim=1), dim=-1)
        grounded_partial = (weight * masked.words).sum(dim=1)
        if self.normalise_partial:
            grounded_partial = F.normalize(grounded_partial, dim=-1)
        texts = {"t": pairs.sentence, "g": grounded, "g'": grounded_partial}
        mask, scores = pairs.frame_mask, {}
        for name in SCORES:
            text, video = name.split(",")
            sides = (texts[text], videos[video], mask, token_weight(videos[video], mask, weigh))
            scores[name] = matched_interaction(*sides, mask_fill=self.mask_fill)
        return scores

    def order(self, pairs: Pairs, **options) -> Tensors:
        """By margin (B, 3): the score of whole pairs, with half the threshold masked, and with all
        of it."""
        scores = self.scores(pairs, **options)
        halved = self.scores(pairs, threshold=self.threshold / 2, **options)
        return {
            name: torch.stack([scores[whole], halved[masked], scores[masked]], dim=1)
            for name, (whole, masked) in self.margins.items()
        }

    def signs(self, pairs: Pairs) -> Tensors:
        """What is masked (% of words, of frames, of captions in which any word is), how much of the
        word predictor's weight the start and end tokens hold (%), and how often the full score wins
        (% of pairs)."""
        maps, words = self.select(pairs)[1], inner_words(pairs.word_mask)
        gone = maps["word_kept"].round() == 0, maps["frame_kept"].round() == 0
        ends = maps["partial_word_weight"] * (pairs.word_mask & ~words)
        signs = {
            "words masked (%)": 100 * gone[0][words].float().mean(),
            "captions with a masked word (%)": 100 * (gone[0] & words).any(1).float().mean(),
            "frames masked (%)": 100 * gone[1][pairs.frame_mask].float().mean(),
            "word predictor's weight on start and end (%)": 100 * ends.sum(1).mean(),
        }
        scores = self.scores(pairs)
        return signs | {
            f"{name}: full above masked (%)": 100 * (scores[whole] > scores[masked]).float().mean()
            for name, (whole, masked) in self.margins.items()
        }

    def select(self, pairs: Pairs, threshold: float | None = None) -> tuple[Pairs, Tensors]:
        """The pairs with masked words and frames, and by name `partial_word_weight`,
        `partial_frame_weight`, `word_kept` and `frame_kept`."""
        sentence, words, frames, *masks = pairs
        word_mask, frame_mask = masks if self.mask_aware else (None, None)
        if not self.mask_ends:
            words_only = inner_words(pairs.word_mask)
            word_mask = words_only | (pairs.word_mask & ~words_only.any(dim=1, keepdim=True))
        word_weight = self.word_predictor(frames, words, frame_mask, word_mask)
        frame_weight = self.frame_predictor(sentence[:, None], frames, None, frame_mask)
        tau = self.threshold if threshold is None else threshold
        how: Any = {"mask_crossing": self.mask_crossing, "straight_through": self.straight_through}
        words, word_kept = select_tokens(words, word_weight, tau, **how)
        frames, frame_kept = select_tokens(frames, frame_weight, tau, **how)
        maps = {"partial_word_weight": word_weight, "partial_frame_weight": frame_weight}
        maps |= {"word_kept": word_kept, "frame_kept": frame_kept}
        return pairs._replace(words=words, frames=frames), maps
