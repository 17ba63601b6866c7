"""GLSCL: "Text-Video Retrieval with Global-Local Semantic Consistent Learning" (Zhang et al.,
2024).

The score is a global interaction (the sentence weighs the frames) plus half a local one (a few
learned queries read concepts out of the words and out of the frames). The loss is InfoNCE plus two
terms on the
concepts: those of one query agree across the sides, those of different queries differ.
"""

from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures, positives
from tvrkit.losses.concepts import concept_consistency, concept_diversity
from tvrkit.losses.contrastive import info_nce
from tvrkit.models.backbone import Backbone
from tvrkit.models.method import Method, Tensors
from tvrkit.models.patches import AttentionRecorder
from tvrkit.models.similarity import concept_similarity, conditioned_pooling
from tvrkit.models.temporal import TemporalTransformer
from tvrkit.settings import Share, settings


@settings
class GLSCLSettings:
    """GLSCL's choices. The paper's MSR-VTT setting is the default.

    Attributes:
        queries: Q, concepts per text and per video.
        decoder_layers, decoder_heads, feedforward, dropout: of the transformer decoder that reads
        concepts.
        query_start: "uniform" in [0, 1], as released, so that queries start nearly parallel, or
            "orthogonal".
        shared_queries: both sides use the same queries.
        shared_decoder: both sides use the same decoder.
        temporal_layers: blocks of the temporal transformer before both interactions.
        temperature: of the frame weights in the global interaction.
        local_weight: of the local score, in training and test alike.
        diversity_weight: alpha.
        diversity_margin: by how much a concept is closer to itself than to the others, in cosine.
        consistency_weight: beta.
        consistency_target: cosine that matched concepts are drawn to.
        fidelity: "released" = the numbers of the released code, "corrected" = findings 14 to 16
            and 38 repaired.
    """

    queries: PositiveInt = 8
    decoder_layers: PositiveInt = 3
    decoder_heads: PositiveInt = 8
    feedforward: PositiveInt = 2048
    dropout: Share = 0.1
    query_start: Literal["uniform", "orthogonal"] = "uniform"
    shared_queries: bool = True
    shared_decoder: bool = True
    temporal_layers: NonNegativeInt = 4
    temperature: PositiveFloat = 3.0
    local_weight: NonNegativeFloat = 0.5
    diversity_weight: NonNegativeFloat = 1.0e-4
    diversity_margin: float = 0.1
    consistency_weight: NonNegativeFloat = 0.005
    consistency_target: float = 0.75
    fidelity: Literal["released", "corrected"] = "corrected"


class ConceptDecoder(nn.Module):
    """Queries attend to each other and to one side's tokens, layer after layer (post-norm, no final
    norm).

    Parameters are named as in `nn.TransformerDecoder`.
    """

    def __init__(self, width: int, settings: GLSCLSettings):
        super().__init__()
        sizes = (width, settings.decoder_heads, settings.feedforward, settings.dropout)
        layer, count = nn.TransformerDecoderLayer, settings.decoder_layers
        self.layers: Any = nn.ModuleList(layer(*sizes, batch_first=True) for _ in range(count))

    def forward(self, queries: Tensor, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """Concepts (B, Q, D) of queries (Q, D) and tokens (B, L, D).

        `padding` (B, L) bool is True where tokens are left out; None = all are attended to.
        """
        # torch's layers, but that without dropout the first self-attention is the same for all
        x = queries.expand(len(tokens) if self.training else 1, -1, -1)
        for layer in self.layers:
            own = layer.self_attn(x, x, x, need_weights=False)[0]
            x = layer.norm1(x + layer.dropout1(own)).expand(len(tokens), -1, -1)
            read = layer.multihead_attn(x, tokens, tokens, padding, need_weights=False)[0]
            x = layer.norm2(x + layer.dropout2(read))
            inner = layer.dropout(layer.linear1(x).relu_())
            x = layer.norm3(x + layer.dropout3(layer.linear2(inner)))
        return x


class GLSCL(Method):
    """The method; see the module and `GLSCLSettings`. Concepts depend on one side only: they are
    features."""

    Settings, weighs_words = GLSCLSettings, False

    def __init__(self, backbone: Backbone, settings: GLSCLSettings):
        super().__init__(backbone, settings)
        self.corrected = settings.fidelity == "corrected"
        self.temporal = TemporalTransformer.from_clip(backbone, settings.temporal_layers)
        width = backbone.width
        # The released model also holds the unshared half, spare layers and a head: 23.1 M unused
        # weights.
        self.queries = _per_side(settings.shared_queries, lambda: _queries(width, settings))
        self.decoder = _per_side(settings.shared_decoder, lambda: ConceptDecoder(width, settings))

    def encode_text(self, batch: TextVideoBatch) -> TextFeatures:
        """Sentence, words and `extras["concepts"]` (B, Q, D), none of them normalised."""
        # Released decoders read padded words too: they must hold what the released tower puts
        # there.
        tokens, mask = batch.tokens, batch.token_mask
        words, sentence = self.backbone.encode_text(tokens, mask, mask_padding=not self.corrected)
        extras = {"concepts": self.concepts("text", words, mask)}
        return TextFeatures(sentence, words, mask, batch.token_weight, extras)

    def video_features(self, frames: Tensor, mask: Tensor) -> VideoFeatures:
        """Frames after the temporal transformer and `extras["concepts"]` (B, Q, D), not
        normalised."""
        frames = self.temporal(frames, mask)
        return VideoFeatures(None, frames, mask, {"concepts": self.concepts("video", frames, mask)})

    def concepts(self, side: str, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, Q, D) float, what each query reads out of one side's tokens.

        Args:
            side: "text" or "video", whose queries and decoder, where they are not shared.
            tokens: (B, L, D) float, words or frames.
            mask: (B, L) bool, True = read. Released decoders read padding too (finding 15).
        """
        queries = self.queries["both" if self.settings.shared_queries else side].weight
        decoder = self.decoder["both" if self.settings.shared_decoder else side]
        return decoder(queries, tokens, ~mask if self.corrected else None)

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """Global plus `local_weight` x local score."""
        temperature = self.settings.temperature
        glob = conditioned_pooling(text.sentence, video.frames, video.mask, temperature=temperature)
        local = concept_similarity(text.extras["concepts"], video.extras["concepts"])
        return glob + self.settings.local_weight * local

    def loss(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> Tensors:
        """InfoNCE + alpha diversity + consistency.

        Diversity is the mean of both sides; the released code takes the video side twice, never the
        text side (finding 16). Consistency averages over the batch, the released code sums (finding
        14).
        """
        choice, scale = self.settings, self.backbone.logit_scale.exp()
        texts, videos = text.extras["concepts"], video.extras["concepts"]
        sides = (texts, videos) if self.corrected else (videos,)
        diversity = sum(concept_diversity(side, margin=choice.diversity_margin) for side in sides)
        goal = {"target": choice.consistency_target, "weight": choice.consistency_weight}
        reduction: Any = "batch_mean" if self.corrected else "batch_sum"
        scores = self.similarity(text, video)
        same = positives(batch.video_index) if self.corrected else None  # finding 38
        parts = {
            "info_nce": info_nce(scores, logit_scale=scale, positives=same),
            "diversity": choice.diversity_weight * diversity / len(sides),
        }
        parts["consistency"] = concept_consistency(texts, videos, reduction=reduction, **goal)
        return {"loss": sum(parts.values()), **parts}

    def own_signs(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> Tensors:
        """Mean cosine between the concepts of one text, and of one video: 1 = all the same."""
        signs = {}
        for side, features in (("text", text), ("video", video)):
            unit = F.normalize(features.extras["concepts"], dim=-1)
            others, count = unit.sum(1).square().sum(1) - unit.shape[1], unit.shape[1]
            signs[f"cosine between {side} concepts"] = others.mean() / max(count * (count - 1), 1)
        return signs

    @torch.no_grad()
    def explain(self, text: TextFeatures, video: VideoFeatures) -> Tensors:
        """What the score looks at, for B matched pairs.

        Returns:
            `frame_weight` (B, F): the sentence's weights of the frames, 0 at padding;
            `concept_words` (B, Q, L) and `concept_frames` (B, Q, F): each query's attention in the
            last decoder layer; `concept_score` (B, Q): cosine of the two sides' concepts.
        """
        logits = torch.einsum("bd,bfd->bf", text.sentence, video.frames) / self.settings.temperature
        sides = {"text": (text.words, text.mask), "video": (video.frames, video.mask)}
        maps = {}
        for side, features in sides.items():
            with AttentionRecorder() as seen:
                self.concepts(side, *features)
            maps[side] = seen.attention[-1].mean(dim=1)  # of the last layer, over heads
        texts, videos = text.extras["concepts"], video.extras["concepts"]
        return {
            "frame_weight": logits.masked_fill(~video.mask, -torch.inf).softmax(dim=1),
            "concept_words": maps["text"],
            "concept_frames": maps["video"],
            "concept_score": torch.cosine_similarity(texts, videos, dim=-1),
        }


def _per_side(shared: bool, make) -> nn.ModuleDict:
    return nn.ModuleDict({side: make() for side in (("both",) if shared else ("text", "video"))})


def _queries(width: int, settings: GLSCLSettings) -> nn.Embedding:
    queries = nn.Embedding(settings.queries, width)
    start = nn.init.uniform_ if settings.query_start == "uniform" else nn.init.orthogonal_
    start(queries.weight)
    return queries
