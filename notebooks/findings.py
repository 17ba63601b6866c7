"""Where released code parts from its paper: one small function a finding, which measures both.

Notebook 08 shows them; they are no part of the package, which computes what the papers mean.
`stated` is the table of all; `FINDINGS` holds by number what measures them, and `table` measures
all on one `Case`. What a setting of the kit reproduces is measured through that setting; where the
kit has only the repair, the function imitates what the released code does. Settings that `fidelity`
sets are named behind it.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrkit.data.augmentation import AUGMENTATIONS
from tvrkit.data.batch import TextFeatures, TextVideoBatch, positives, uniform
from tvrkit.data.text import KeywordMasker, Tagger, token_spans, tokenise
from tvrkit.evaluation.postprocess import processed
from tvrkit.evaluation.ranks import retrieval_metrics, retrieval_ranks
from tvrkit.losses.concepts import concept_consistency, concept_diversity
from tvrkit.losses.contrastive import info_nce, neg_nce
from tvrkit.models.dmae import matched_pairs
from tvrkit.models.hmmc import RELEASED_SCALE
from tvrkit.models.hmmc_pretraining import UNMASKED, mask_words
from tvrkit.models.similarity import token_weight
from tvrkit.models.temporal import TemporalTransformer
from tvrkit.models.tpm import Pairs, PartialOrder, matched_interaction
from tvrkit.settings import EvalConfig, TrainConfig
from tvrkit.training.optim import BertAdam, build_optimizer, parameter_groups

BLOCK, PART = 16, 8  # released TPM-CL computes blocks of 16 pairs in parts of 8
TABLE = Path(__file__).with_name("findings.csv")
BLUE_SHIFT = (0.4578275 - 0.40821073) / 0.27577711  # green's mean for blue's, in deviations
Values = Sequence[float | int | str]  # released, corrected


@dataclass(frozen=True)
class Case:
    """What findings are measured on: a method of each paper, and matched pairs for them.

    Attributes:
        methods: "dmae", "glscl" and "hmmc" as `corrected`, with CLIP towers, in evaluation mode.
        batch: B >= 24 matched pairs of different videos, every frame valid.
        captions: the B captions behind the tokens.
        curves: of each run, t2v R@1 (%) after each epoch on the split that is reported.
    """

    methods: dict[str, Any]
    batch: Any  # a TextVideoBatch with both sides, which its type leaves open
    captions: list[str]
    curves: Sequence[Sequence[float]]

    def version(self, name: str, fidelity: str) -> Any:
        """A method with the same weights, "released" or "corrected"."""
        method = self.methods[name]
        settings = replace(method.settings, fidelity=fidelity)
        version = type(method)(copy.deepcopy(method.backbone), settings).eval()
        version.load_state_dict(method.state_dict())
        return version

    @cached_property
    def features(self) -> dict[str, tuple[TextFeatures, Any]]:
        """Texts and videos of the batch, by method."""
        sides = {n: (m.encode_text, m.encode_video) for n, m in self.methods.items()}
        with torch.no_grad():
            return {n: (text(self.batch), video(self.batch)) for n, (text, video) in sides.items()}

    @property
    def pairs(self) -> Pairs:
        """DMAE's pairs, as `PartialOrder` takes them."""
        return matched_pairs(*self.features["dmae"])

    @property
    def ragged(self) -> Any:
        """The batch, of which only 2, 3, ... frames in turn count as valid."""
        count = self.batch.frame_mask.shape[1]
        lengths = 2 + torch.arange(len(self.batch)) % (count - 1)
        return replace(self.batch, frame_mask=torch.arange(count) < lengths[:, None])

    def order(self, **changes: bool) -> PartialOrder:
        """DMAE's TPM-CL with some choices changed, and the same weights."""
        order = copy.copy(self.methods["dmae"].partial_order)
        vars(order).update(changes)
        return order


FINDINGS: dict[int, Callable[[Case], Values]] = {}  # those that are measured, by number


def finding(number: int, released: Any = "released", corrected: Any = "corrected"):
    """Register the function below as a finding's measure: it is called with either choice, and
    draws the same numbers whenever both are measured."""

    def register(measure: Callable[[Case, Any], float | int | str]) -> Callable[[Case], Values]:
        @wraps(measure)
        def both(case: Case) -> Values:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return [measure(case, choice) for choice in (released, corrected)]

        FINDINGS[number] = both
        return both

    return register


def stated() -> pd.DataFrame:
    """`findings.csv`, all findings by number: `where` (the method or its part), `what` (the
    quantity), `released` and `corrected` (empty where they are measured), `keyword` (what chooses
    between both, or where the kit's repair is), `source` (repository at a commit, file and line
    there)."""
    return pd.read_csv(TABLE, index_col="number", dtype={"number": int}, keep_default_na=False)


def table(case: Case) -> pd.DataFrame:
    """`stated` with the measured values of a case, of three digits."""
    rows = stated()
    for number, measure in FINDINGS.items():
        shown = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in measure(case)]
        rows.loc[number, ["released", "corrected"]] = shown
    return rows


# --- TPM-CL (DMAE)


def released_pairing(size: int) -> np.ndarray:
    """Whose text, weighed by whose video, meets each row's masked video in the released code.

    A block of pairs is computed in parts, and one side is put back in another order.

    Args:
        size: of the batch, a multiple of 8.

    Returns:
        (2, size) int: texts and videos, by row of the batch.
    """
    met = []
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        pairs = np.arange(count**2).reshape(count // PART, PART, count // PART, PART)
        diagonal = pairs.transpose(1, 2, 0, 3).reshape(count, count).diagonal()
        met.append(start + np.array(divmod(diagonal, count)))
    return np.concatenate(met, axis=1)


def grounded_margin(case: Case, texts: np.ndarray, videos: np.ndarray) -> float:
    """mean [delta - s(g, v) + s(h, v')]_+, h the words of `texts` weighed by `videos`, (size,)."""
    order = case.order(mask_aware=False)
    own = Pairs(*(side[: len(texts)] for side in case.pairs))
    words, frames, mask = case.pairs.words[texts], own.frames, own.frame_mask
    weight = order.word_predictor(case.pairs.frames[videos], words)[..., None]
    met, masked = F.normalize((weight * words).sum(dim=1), dim=-1), order.select(own)[0].frames
    part = matched_interaction(met, masked, mask, token_weight(frames, mask, None))
    return (order.margin - order.scores(own)["g,v"] + part).relu().mean().item()


@finding(2, released_pairing(24), np.tile(np.arange(24), (2, 1)))
def strangers(case: Case, pairing: np.ndarray) -> float:
    """Paper: g meets its own v'. Released: in batches above 8, a stranger's does (14 of 24)."""
    return grounded_margin(case, *pairing)


@finding(3, True, False)
def block_sums(case: Case, summed: bool) -> float:
    """Paper: weights within a video. Released: summed over all 64 pairs of a part as well."""
    sentence, _, frames, _, mask = (side[:PART] for side in case.pairs)
    weight = token_weight(frames, mask, case.methods["dmae"].frame_weight)
    met = weight.mean(dim=0).expand_as(weight) if summed else weight
    mean = matched_interaction(sentence, frames, mask, met).mean().item()
    return PART**2 * mean if summed else mean


@finding(4, 8, 16)
def first_rank(case: Case, rows: int) -> float:
    """Paper: the mean over the batch. Released: of what is gathered, rank 0's rows count."""
    pairs = Pairs(*(side[:rows] for side in case.pairs))
    frames = pairs.frames.requires_grad_()
    (slope,) = torch.autograd.grad(case.order()(pairs)["sentence_video"], frames)
    return 100 * int(slope.flatten(1).any(dim=1).sum()) / 16


@finding(5, False, True)
def padding_weighed(case: Case, mask_aware: bool) -> float:
    """Paper: words are weighed. Released: padded positions too."""
    _, maps = case.order(mask_aware=mask_aware).select(case.pairs)
    return 100 * (maps["partial_word_weight"] * ~case.pairs.word_mask).sum(dim=1).mean().item()


@finding(6, False, True)
def unequal_norms(case: Case, normalised: bool) -> float:
    """Paper: g and g' are compared alike. Released: only g is normalised."""
    return case.order(normalise_partial=normalised)(case.pairs)["grounded_text"].item()


@finding(7, False, True)
def hard_selection(case: Case, straight_through: bool) -> int:
    """Paper: what is masked is learned. Released: the choice is hard and passes no gradient."""
    order = case.order(straight_through=straight_through)
    loss, wanted = sum(order(case.pairs).values()), [*order.frame_predictor.parameters()]
    slopes = torch.autograd.grad(loss, wanted, allow_unused=True)
    return sum(slope is not None and bool(slope.any()) for slope in slopes)


# --- DMAE


@finding(8, 0.0, -torch.inf)
def padding_best(case: Case, fill: float) -> float:
    """Paper: a text takes its best frame. Released: a masked frame is 0, and may be the best."""
    mask = case.ragged.frame_mask
    product = torch.einsum("ad,bfd->abf", case.pairs.sentence, case.pairs.frames)
    best = product.masked_fill(~mask, fill).argmax(dim=2)
    return 100 * (~mask)[range(len(mask)), best].float().mean().item()


@finding(9, False, True)
def boosted_sum(case: Case, renormalise: bool) -> float:
    """Paper: a mean over words. Released: weights of boosted words sum to more than 1."""
    text, head = case.features["dmae"][0], case.methods["dmae"].word_weight
    weight = token_weight(text.words, text.weight * text.mask, head, renormalise=renormalise)
    return weight.sum(dim=1).mean().item()


def textual_attention(case: Case) -> list[pd.DataFrame]:
    """Per caption a row per token: `token`, the `letter` that released code compares it with, and
    how often it counts, `released` (one long word is tagged) and `corrected`."""
    tokenizer, limit = case.methods["dmae"].backbone.tokenizer, case.batch.tokens.shape[1]
    tagger, tables = Tagger("en"), []
    weights = tokenise(case.captions, tokenizer, limit, tagger)[2]
    for row, spans in enumerate(token_spans(case.captions, tokenizer, limit)):
        caption = tokenizer.clean_fn(case.captions[row])
        tokens = [caption[start:end] for _, (start, end) in spans]
        glued = "".join(tokens)
        content = {k for start, end in tagger.content_spans(glued) for k in range(start, end)}
        counts = [1 + (k in content and token == glued[k]) for k, token in enumerate(tokens)]
        columns = {"token": tokens, "letter": list(glued[: len(tokens)]), "released": counts}
        tables.append(pd.DataFrame(columns | {"corrected": weights[row, 1 : len(tokens) + 1]}))
    return tables


@finding(10)
def content_words(case: Case, tagged: str) -> float:
    """Paper: nouns, verbs, adjectives count twice. Released: the caption is tagged as one word."""
    return 100 * float((pd.concat(textual_attention(case))[tagged] == 2).mean())


@finding(11, "", " ")
def glued_captions(case: Case, blank: str) -> float:
    """Paper: light words are dropped. Released: what stays is joined to one long word."""
    masker, draws = KeywordMasker({c: [c] for c in case.captions}), np.random.default_rng(0)
    texts = [blank.join(masker.mask(c, c, draws, [])[0].split()) for c in case.captions]
    method, (whole, _) = case.methods["dmae"], case.features["dmae"]
    batch = TextVideoBatch(*tokenise(texts, method.backbone.tokenizer, whole.mask.shape[1]))
    return F.cosine_similarity(method.encode_text(batch).sentence, whole.sentence).mean().item()


@finding(36)
def temporal_head(case: Case, fidelity: str) -> float:
    """Released scripts use mean pooling; their seqTransf leaves the cosine scale."""
    method = case.version("dmae", fidelity)
    sides = method.encode_text(case.batch), method.encode_video(case.batch)
    return method.similarity(*sides).abs().max().item()


def pull(gap: float, clamp: float | None) -> float:
    """|dL/dS_ii| of NegNCE's positive term where the only negative is `gap` above the match."""
    scores = torch.tensor([[0.0, gap], [-1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = neg_nce(scores, clamp=clamp, negative_weight=0.0)
    return torch.autograd.grad(loss, scores)[0][0, 0].abs().item()


@finding(13, 1e-6, None)
def clamped(case: Case, clamp: float | None) -> float:
    """Paper: -log P. Released: P is clamped to 1e-6, and the worst pairs get no gradient."""
    return pull(0.2, clamp)


# --- GLSCL


def consistency(case: Case, size: int) -> list[float]:
    """GLSCL's consistency loss of the first `size` pairs, released and corrected."""
    texts, videos = (side.extras["concepts"][:size] for side in case.features["glscl"])
    choice = case.methods["glscl"].settings
    loss = partial(concept_consistency, texts, videos, target=choice.consistency_target)
    ways = [partial(loss, reduction="batch_sum"), partial(loss, reduction="batch_mean")]
    return [way(weight=choice.consistency_weight).item() for way in ways]


@finding(14, 0, 1)
def summed_agreement(case: Case, way: int) -> float:
    """Paper: the mean cosine is drawn to 0.75. Released: the batch's sum over Q, which is none."""
    return consistency(case, len(case.batch))[way]


@finding(15)
def padding_read(case: Case, fidelity: str) -> float:
    """Paper: words and frames are read. Released: the decoder attends to padding too."""
    method, valid = case.version("glscl", fidelity), case.ragged.frame_mask[..., None, None, None]
    inverted = torch.where(valid, case.ragged.frames, 255 - case.ragged.frames)
    clips = [replace(case.ragged, frames=frames) for frames in (case.batch.frames, inverted)]
    text = method.encode_text(case.batch)
    scores = [method.similarity(text, method.encode_video(clip)) for clip in clips]
    return (scores[0] - scores[1]).abs().max().item()


@finding(16, (1, 1), (0, 1))
def video_twice(case: Case, sides: Sequence[int]) -> float:
    """Paper: both sides' concepts differ. Released: the video side counts twice, the text never."""
    margin = case.methods["glscl"].settings.diversity_margin
    concepts = [case.features["glscl"][side].extras["concepts"] for side in sides]
    return sum(concept_diversity(each, margin=margin).item() for each in concepts) / 2


@finding(17, True, False)
def other_queries(case: Case, drawn: bool) -> float:
    """Paper: texts and videos share queries. Released: the test script takes others for texts."""
    (text, video), other = case.features["glscl"], copy.deepcopy(case.methods["glscl"])
    nn.init.uniform_(other.queries["both"].weight)
    scores = [other.similarity(side, video) for side in (other.encode_text(case.batch), text)]
    return (scores[not drawn] - scores[1]).abs().mean().item()


@finding(18, False, True)
def what_runs(case: Case, repaired: bool) -> int:
    """Paper: has rows for them. Released: QB-Norm is commented out, the others stop."""
    method, (text, video) = case.methods["glscl"], case.features["glscl"]
    scores = method.similarity(text, video)
    several = retrieval_ranks(scores.repeat_interleave(2, dim=0), np.arange(len(scores)).repeat(2))
    single = method.loss(text[:1], video[:1], case.batch[:1])["loss"].detach()
    normed = processed("qbnorm", scores, {"t2v": scores, "v2t": scores}, EvalConfig())["t2v"][:]
    results = (normed, several, single, method.similarity(text[:17], video[:17]))
    return repaired * sum(bool(torch.as_tensor(result).isfinite().all()) for result in results)


# --- HMMC


@finding(20, BLUE_SHIFT, 0.0)
def blue_mean(case: Case, shift: float) -> float:
    """CLIP has a mean per colour. Released: pre-training takes green's for blue."""
    frames = case.methods["hmmc"].backbone.normalise(case.batch.frames)
    frames[:, :, 2] -= shift
    tinted = case.methods["hmmc"].encode_video(replace(case.batch, frames=frames)).video
    return F.cosine_similarity(tinted, case.features["hmmc"][1].video).mean().item()


@finding(22)
def padding_averaged(case: Case, fidelity: str) -> float:
    """Paper: a mean over frames. Released: padding is averaged too."""
    batch, four = case.batch, torch.arange(case.batch.frames.shape[1]) < 4
    frames = batch.frames * four[:, None, None, None]
    padded = replace(batch, frames=frames, frame_mask=batch.frame_mask & four)
    short = replace(batch, frames=frames[:, :4], frame_mask=batch.frame_mask[:, :4])
    method = case.version("hmmc", fidelity)
    videos = [method.encode_video(clips).video for clips in (padded, short)]
    return F.cosine_similarity(*videos).mean().item()


@finding(23)
def constant_scale(case: Case, fidelity: str) -> float:
    """Paper: CLIP's temperature, which is trained. Released: 100 throughout."""
    trained = case.methods["hmmc"].backbone.logit_scale.exp().item()
    return RELEASED_SCALE if fidelity == "released" else trained


@finding(24, True, False)
def padding_predicted(case: Case, everywhere: bool) -> float:
    """Paper: 15 % of the words are masked. Released: 15 % of all positions."""
    words = case.batch.token_mask
    draws = uniform(torch.arange(len(words)), 3, words.shape[1])
    options: Any = {"share": 0.15, "draws": draws, "mask_token": 1, "vocabulary": 2}
    label = mask_words(case.batch.tokens, words | everywhere, **options)[1]
    return 100 * (~words)[label != UNMASKED].float().mean().item()


def clipped_step(scale: float) -> float:
    """Mean step of BertAdam / lr, gradients of norm 100 clipped to 1 after a factor `scale`."""
    p, draws = torch.zeros(10_000), torch.Generator().manual_seed(0)
    adam = BertAdam([p], 1.0, 0.0, 100, "constant", weight_decay=0.0)
    for _ in range(20):
        before, gradient = p.clone(), scale * torch.randn(10_000, generator=draws)
        p.grad = gradient * min(1.0, 1.0 / gradient.norm().item()) / scale
        adam.step()
    return (p - before).abs().mean().item()


@finding(25, 65_536.0, 1.0)
def clipped_scaled(case: Case, scale: float) -> float:
    """Gradients are clipped to norm 1. Released: with AMP, before the loss scale is taken out."""
    return clipped_step(scale)


@finding(31, TemporalTransformer.beside_clip, TemporalTransformer.from_clip)
def temporal_start(case: Case, start: Callable[..., TemporalTransformer]) -> float:
    """Paper: starts from CLIP's text positions. Released: the lines that copy are commented out."""
    temporal = start(case.methods["hmmc"].backbone, layers=1)
    return temporal.frame_position_embeddings.weight.std().item()


def augmented(clip: Tensor, name: str) -> Tensor:
    """A clip under one of `AUGMENTATIONS`, or "" for none, as float."""
    return (AUGMENTATIONS[name](clip, clip.shape[-1]) if name else clip).float()


@finding(32, "hmmc-per-frame", "hmmc")
def frames_augmented(case: Case, name: str) -> float:
    """Paper: a clip is augmented. Released: each frame by a draw of its own."""
    clip = case.batch.frames[0, :1].expand(8, -1, -1, -1)
    return augmented(clip, name).diff(dim=0).abs().mean().item()


@finding(34, "randaugment", "")
def clips_augmented(case: Case, name: str) -> float:
    """Paper: says nothing of it. Released: RandAugment of all clips of MSR-VTT, MSVD and LSMDC."""
    changes = [(augmented(clip, name) - clip).abs().mean() for clip in case.batch.frames]
    return torch.stack(changes).mean().item()


# --- Several codes


@finding(26, True, False)
def decayed_gains(case: Case, decay_all: bool) -> int:
    """LayerNorm is spared from decay. Released: a test for BERT's names, which CLIP's pass."""
    method = case.methods["glscl"]
    gains = {id(m.weight) for m in method.modules() if isinstance(m, nn.LayerNorm)}
    groups = parameter_groups(method, TrainConfig(decay_all=decay_all))
    return sum(id(p) in gains for g in groups if g["weight_decay"] for p in g["params"])


def optimizer_steps(
    name: Literal["bertadam", "adamw"], steps: int = 130, planned: int = 100
) -> list[float]:
    """Steps of "bertadam" or "adamw", in units of lr, under a gradient of 1 throughout."""
    part: Any = nn.ParameterList([torch.zeros(1, 1)])
    train = TrainConfig(optimizer=name, lr=1.0, weight_decay=0.0)
    (adam, plan), moved = build_optimizer(part, train, planned), []
    for _ in range(steps):
        before, part[0].grad = part[0].item(), torch.ones(1, 1)
        adam.step()
        moved.append(before - part[0].item())
        if plan:
            plan.step()
    return moved


@finding(27, "bertadam", "adamw")
def bert_adam(case: Case, name: Literal["bertadam", "adamw"]) -> str:
    """Adam corrects its bias. BertAdam: does not, first stands still, in the end rises again."""
    steps = optimizer_steps(name)
    return f"{steps[0]:.2f}, {max(steps):.2f}, {steps[-1]:.2f}"


def ranks_by_position(scores: np.ndarray) -> np.ndarray:
    """Released ranks: all places of the sorted row that equal the own score. Ties give a query
    several, NaN none."""
    return 1 + np.nonzero(-np.sort(-scores, axis=1) == np.diag(scores)[:, None])[1]


@finding(29, ranks_by_position, retrieval_ranks)
def tied_ranks(case: Case, rank: Callable[[np.ndarray], np.ndarray]) -> str:
    """A query has one rank. Released: one for each place that shows its score."""
    scores = case.methods["dmae"].similarity(*case.features["dmae"]).numpy()
    scores[: 3 * len(scores) // 10] = 0.0
    ranks = rank(scores)
    return f"{retrieval_metrics(ranks)['R@1']:.1f} of {len(ranks)}"


@finding(30, max, lambda curve: curve[-1])
def best_epoch(case: Case, reported: Callable[[Sequence[float]], float]) -> float:
    """Test data is kept for the end. Released: the validation set, which picks, is the test set."""
    return float(np.mean([reported(curve) - curve[-1] for curve in case.curves]))


@finding(38, False, True)
def twins_repelled(case: Case, known: bool) -> float:
    """Paper: other videos are negatives. Released: so is the same video's other caption."""
    twins = positives(torch.arange(PART).repeat(2))  # their scores are perfect
    loss = info_nce(twins.float(), logit_scale=RELEASED_SCALE, positives=twins if known else None)
    return loss.item()
