"""DMAE with NegNCE and TPM-CL: "Dual-Modal Attention-Enhanced Text-Video Retrieval with Triplet
Partial Margin Contrastive Learning" (Jiang et al., ACM MM 2023).

The score is a token-wise interaction with dual-modal attention: on the video side a word's second
look at the frame nearest to its best one, on the text side a double weight for nouns, verbs and
adjectives. The loss is NegNCE plus partial-order margins: a whole video and a whole caption match
better than their masked versions.
"""

from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional as F

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures, inner_words, positives
from tvrkit.losses.contrastive import neg_nce
from tvrkit.losses.miners import margin_negatives
from tvrkit.models.backbone import Backbone
from tvrkit.models.method import RELEASED_SCALE, Method, Tensors
from tvrkit.models.similarity import MaskFill, second_look, token_interaction, token_weight
from tvrkit.models.temporal import TemporalTransformer
from tvrkit.models.tpm import Pairs, PartialOrder, TPMSettings
from tvrkit.settings import settings

RELEASED_CLAMP = 1e-6  # of the probabilities in the released loss (finding 13)


@settings
class DMAESettings(TPMSettings):
    """DMAE's choices, besides those of TPM-CL. The paper's full method is the default.

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
    """

    interaction: Literal["ti", "wti", "att_ti", "att_wti"] = "att_wti"
    second_frame: bool = True
    textual_attention: bool = True
    head: Literal["meanP", "seqTransf"] = "seqTransf"
    temporal_layers: NonNegativeInt = 4
    negative_weight: NonNegativeFloat = 0.5
    mining_margin: float = 0.0


class DMAE(Method):
    """The method; see the module and `DMAESettings`. Features are L2-normalised when they leave
    `encode_*`."""

    Settings = DMAESettings

    def __init__(self, backbone: Backbone, settings: DMAESettings):
        super().__init__(backbone, settings)
        self.corrected = settings.fidelity == "corrected"
        self.weighs_words = settings.textual_attention and self.corrected
        self.mask_fill: MaskFill = "exclude" if self.corrected else "zero"
        width, is_weighted = backbone.width, settings.interaction.endswith("wti")
        self.uses_words = settings.interaction.startswith("att")
        # without bias: the softmax over tokens cancels it
        learns_words = is_weighted and self.uses_words
        self.word_weight = nn.Linear(width, 1, bias=False) if learns_words else None
        self.frame_weight = nn.Linear(width, 1, bias=False) if is_weighted else None
        self.temporal = None
        if settings.head == "seqTransf":
            sizes = (settings.temporal_layers, settings.max_frames)
            self.temporal = TemporalTransformer.from_clip(backbone, *sizes)
        self.partial_order = PartialOrder(width, settings) if settings.partial_order else None

    @property
    def released_temporal(self) -> TemporalTransformer | None:
        """The temporal transformer where it reads normalised frames, as released."""
        return None if self.corrected else self.temporal

    def encode_text(self, batch: TextVideoBatch) -> TextFeatures:
        """Normalised sentence and words; extras: `word_weight` (B, L), what each word counts in the
        score."""
        text = super().encode_text(batch)
        words, sentence = F.normalize(text.words, dim=-1), F.normalize(text.sentence, dim=-1)
        attention = text.weight * text.mask if self.weighs_words else text.mask
        weight = token_weight(words, attention, self.word_weight, renormalise=self.corrected)
        return TextFeatures(sentence, words, text.mask, text.weight, {"word_weight": weight})

    def video_features(self, frames: Tensor, mask: Tensor) -> VideoFeatures:
        """Frames behind the head. Extras: `frame_weight`, `second_gain` and `second_frame`, all (B,
        F), and `frames_before` (B, F, D), the normalised CLIP frames that released TPM-CL masks
        before its transformer.

        The released head normalises before the transformer and not after it. Unit frames drown in
        blocks that start from CLIP's, and scores leave the cosine scale; the corrected one is
        CLIP4Clip's: raw in, normalised out.
        """
        extras = {}
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
        extras, look = video.extras, self.settings.second_frame
        options: dict[str, Any] = {
            "video_weight": extras["frame_weight"],
            "second_frame": look and (extras["second_gain"], extras["second_frame"]),
            "mask_fill": self.mask_fill,
        }
        sentence, whole = text.sentence[:, None], torch.ones_like(text.mask[:, :1])
        score = token_interaction(sentence, video.frames, whole, video.mask, **options)
        if not self.uses_words:
            return score
        options["text_weight"] = text.extras["word_weight"]
        by_word = token_interaction(text.words, video.frames, text.mask, video.mask, **options)
        return (score + by_word) / 2

    def contrast(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> Tensor:
        """NegNCE over the batch."""
        return neg_nce(
            self.similarity(text, video),
            logit_scale=self.backbone.logit_scale.exp() if self.corrected else RELEASED_SCALE,
            margin=self.settings.mining_margin,
            negative_weight=self.settings.negative_weight,
            clamp=None if self.corrected else RELEASED_CLAMP,
            positives=positives(batch.video_index) if self.corrected else None,
        )

    def loss(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> Tensors:
        """NegNCE over the batch plus the partial-order margins of its matched pairs."""
        parts: dict[str, Any] = {"neg_nce": self.contrast(text, video, batch)}
        if self.partial_order is not None:
            heads = {"temporal": self.released_temporal, "weigh": self.frame_weight}
            parts |= self.partial_order(matched_pairs(text, video), **heads)
        return {"loss": sum(parts.values()), **parts}

    def own_signs(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> Tensors:
        """Share of negatives that are mined, of words that count twice (%), how much the second
        look counts (cosine of a frame and its neighbour), and the signs of TPM-CL."""
        same, words = positives(batch.video_index), inner_words(text.mask)
        scores = self.similarity(text, video)
        mined = margin_negatives(scores, same, margin=self.settings.mining_margin)
        signs = {"negatives mined (%)": 100 * mined.sum() / (~same).sum().clamp(min=1)}
        if self.settings.textual_attention:
            signs["words that count twice (%)"] = 100 * (text.weight[words] == 2).float().mean()
        if self.settings.second_frame:
            signs["gain of the second look"] = video.extras["second_gain"][video.mask].mean()
        if self.partial_order is not None:
            signs |= self.partial_order.signs(matched_pairs(text, video))
        return signs

    @torch.no_grad()
    def explain(self, text: TextFeatures, video: VideoFeatures) -> Tensors:
        """What the score and TPM-CL look at, for B matched pairs.

        Returns:
            `word_weight` (B, L) and `frame_weight` (B, F): shares in the score; `word_frame` (B, L,
            F): cosine map, 0 at padding; `best_frame` (B, L): where each word looks first;
            `second_frame`, `second_gain` (B, F): where a word goes on to look from there, and how
            much it counts; from TPM-CL what `PartialOrder.select` names (kept: 1, masked: 0), and
            `order_<margin>` (B, 3), see `PartialOrder.order`.
        """
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
            pairs = matched_pairs(text, video)
            heads = {"temporal": self.released_temporal, "weigh": self.frame_weight}
            order = self.partial_order.order(pairs, **heads)
            maps |= self.partial_order.select(pairs)[1]
            maps |= {f"order_{name}": scores for name, scores in order.items()}
        return {name: tensor.detach() for name, tensor in maps.items()}


def matched_pairs(text: TextFeatures, video: VideoFeatures) -> Pairs:
    """What TPM-CL reads: frames before the released head's transformer, else behind the head."""
    frames = video.extras.get("frames_before", video.frames)
    return Pairs(text.sentence, text.words, frames, text.mask, video.mask)
