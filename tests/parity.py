"""Parity with the released code: `python -m tests.parity [folder]` prints function, section,
largest error.

A check computes what the kit returns on the stored inputs and compares it with every stored number
it finds. The tests run the same checks on the numbers in `tests/golden`, and on the full set where
that is at hand.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.losses import concepts as concept_losses
from tvrkit.losses import momentum as momentum_losses
from tvrkit.losses.contrastive import info_nce, neg_nce
from tvrkit.models import glscl, hmmc, hmmc_pretraining, official, similarity, tpm
from tvrkit.models.momentum import NegativeQueue, momentum_update
from tvrkit.models.similarity import token_interaction, token_weight
from tvrkit.models.temporal import TemporalTransformer
from tvrkit.training.optim import BertAdam

COMMITTED = Path(__file__).parent / "golden"
FULL = Path(
    os.environ.get("TVRKIT_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden")
)


class Golden:
    """Stored numbers of one file, and the largest errors against them.

    Attributes:
        value: largest |error| of a value, relative where the value exceeds 1.
        gradient: largest |error| of a gradient, relative to the gradient's largest entry.
        compared: how many stored tensors were met.
        name, folder: of the file.
    """

    def __init__(self, path: Path):
        self.stored, self.name, self.folder = load_file(path), path.stem, path.parent
        self.value = self.gradient = 0.0
        self.compared = 0

    def __getitem__(self, key: str) -> Tensor:
        return self.stored[key]

    def leaf(self, key: str) -> Tensor:
        """A copy that takes a gradient."""
        return self.stored[key].clone().requires_grad_()

    def expect(self, key: str, result: Tensor) -> None:
        """Compare a value, if it is stored."""
        if key in self.stored:
            expected = self.stored[key].to(result.dtype)
            error = (result.detach() - expected).abs() / expected.abs().clamp(min=1)
            self.value = max(self.value, error.max().item())
            self.compared += 1

    def expect_gradients(self, output: Tensor, leaves: dict[str, Tensor]) -> None:
        """Compare the gradients of a scalar with those of the stored ones that `leaves` names."""
        leaves = {key: leaf for key, leaf in leaves.items() if key in self.stored}
        if not leaves:
            return
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        for key, gradient in zip(
            leaves, torch.autograd.grad(output, [*leaves.values()], **options), strict=True
        ):
            expected = self.stored[key]
            scale = expected.abs().max().clamp(min=1e-12)
            self.gradient = max(self.gradient, ((gradient - expected).abs().max() / scale).item())
            self.compared += 1

    def load(self, module: nn.Module, rename: Callable[[str], str]) -> nn.Module:
        """Fill `module` with the stored weights; `rename` maps its names to the stored ones."""
        module.load_state_dict({name: self.stored[rename(name)] for name in module.state_dict()})
        return module.eval()


def linear(weight: Tensor) -> nn.Linear:
    """The token weight layer; the released bias cancels in the softmax."""
    layer = nn.Linear(weight.shape[1], 1, bias=False)
    layer.weight.data = weight
    return layer


def temporal(g: Golden, layers: int) -> TemporalTransformer:
    """The temporal transformer of a file, one head per 64 channels."""
    positions, width = g["weight.frame_position_embeddings.weight"].shape
    module = TemporalTransformer(width, layers, width // 64, positions)
    return g.load(
        module, lambda name: f"weight.{'transformerClip.' * name.startswith('res')}{name}"
    )


def interaction(
    g: Golden, name: str, second: bool, mask: Tensor, text: Tensor, words: Tensor, video: Tensor
):
    """DMAE's released score from raw words and a video that is ready."""
    words, video_mask, options = normalize(words, dim=-1), g["video_mask"], {"second_frame": second}
    heads = {"text": None, "video": None}
    if name.endswith("wti"):
        heads = {side: linear(g[f"weight.{side}_weight_fc.weight"]) for side in heads}
    options["video_weight"] = token_weight(video, video_mask, heads["video"])
    score = token_interaction(text, video, mask[:, :1], video_mask, **options)
    if name.startswith("att"):
        weight = token_weight(words, mask, heads["text"], renormalise=False)
        score = (
            score
            + token_interaction(words, video, mask > 0, video_mask, text_weight=weight, **options)
        ) / 2
    return score


def check_token_interaction(g: Golden) -> None:
    for name in ("ti", "wti", "att_ti", "att_wti"):
        for second in (0, 1):
            for mask in ("plain", "twm"):
                key = f"{name}.nfc{second}.{mask}"
                text, words, video = (
                    g.leaf(k) for k in ("text_feat", "word_feat_raw", "video_feat_raw")
                )
                weights = g["word_mask" if mask == "plain" else "twm_mask"]
                score = interaction(
                    g, name, bool(second), weights, text, words, normalize(video, dim=-1)
                )
                g.expect(f"{key}.sim", score)
                leaves = {
                    f"{key}.grad_text": text,
                    f"{key}.grad_word": words,
                    f"{key}.grad_video": video,
                }
                g.expect_gradients((score * g["cotangent"]).sum(), leaves)
                if score.shape[0] == score.shape[1]:
                    g.expect(f"{key}.stage3_negnce_loss", neg_nce(score))
                    g.expect(f"{key}.stage3_crossen_loss", info_nce(score, logit_scale=100.0))


def check_interaction_after_temporal(g: Golden) -> None:
    text, words, video = (g.leaf(k) for k in ("text_feat", "word_feat_raw", "video_feat_raw"))
    frames = temporal(g, layers=1)(normalize(video, dim=-1), g["video_mask"])
    score = interaction(g, "att_wti", True, g["twm_mask"], text, words, frames)
    g.expect("sim", score)
    g.expect("negnce_loss", neg_nce(score))
    loss = info_nce(score, logit_scale=5.0)
    g.expect("crossen5_loss", loss)
    names = {"crossen5.grad_text": text, "crossen5.grad_word": words, "crossen5.grad_video": video}
    g.expect_gradients(loss, names)


def _check_contrastive(g: Golden, name: str, loss: Callable[[Tensor], Tensor]) -> None:
    for case in [key.removesuffix(".S") for key in g.stored if key.endswith(".S")]:
        scores = g.leaf(f"{case}.S")
        value = loss(scores)
        g.expect(f"{case}.{name}.mean", value)
        g.expect_gradients(value, {f"{case}.{name}.grad": scores})


def check_info_nce(g: Golden) -> None:
    _check_contrastive(g, "crossen", lambda scores: info_nce(scores, logit_scale=100.0))


def check_neg_nce(g: Golden) -> None:
    _check_contrastive(g, "negnce", neg_nce)


def check_token_weights(g: Golden) -> None:
    for side, names in {"t2v": ("q_text", "k_frames"), "v2t": ("q_frames", "k_words")}.items():
        for kind in ("linear", *tpm.POOLING):
            query, key = (g.leaf(name) for name in names)
            predictor = tpm.TokenWeightPredictor(kind, key.shape[2], query.shape[1], key.shape[1])
            g.load(predictor, lambda name, prefix=f"{side}.{kind}": f"{prefix}.weight.{name}")
            weight = predictor(query, key)
            g.expect(f"{side}.{kind}.attn", weight)
            leaves = {f"{side}.{kind}.grad_q": query, f"{side}.{kind}.grad_k": key}
            g.expect_gradients((weight * g[f"{side}.{kind}.cotangent"]).sum(), leaves)


def check_select_tokens(g: Golden) -> None:
    for name in [name.removesuffix(".policy") for name in g.stored if name.endswith(".policy")]:
        source, threshold = name.split(".select")
        tokens = g["k_frames" if name.startswith("t2v") else "k_words"]
        kept, policy = tpm.select_tokens(tokens, g[f"{source}.attn"], float(threshold))
        g.expect(f"{name}.policy", policy)
        g.expect(f"{name}.tokens", kept)


def check_partial_order(g: Golden) -> None:
    text, words, video = (g.leaf(k) for k in ("text_feat", "word_feat", "video_feat"))
    sizes = {"max_words": words.shape[1], "max_frames": video.shape[1]}
    order = tpm.PartialOrder(text.shape[2], tpm.TPMSettings(fidelity="released", **sizes))
    sides = {"word_predictor": "v2t_linear_xwp", "frame_predictor": "t2v_linear_xwp"}
    g.load(order, lambda name: f"weight.{sides[name.split('.')[0]]}.{name.split('.', 1)[1]}")
    is_weighted = "weight.video_weight_fc.weight" in g.stored
    options = {
        "temporal": temporal(g, 1)
        if "weight.frame_position_embeddings.weight" in g.stored
        else None,
        "weigh": linear(g["weight.video_weight_fc.weight"]) if is_weighted else None,
    }
    pairs = tpm.Pairs(text[:, 0], words, video, g["word_mask"].bool(), g["video_mask"].bool())
    names = {"t,v": "t2vh", "t,v'": "t2vhh", "g,v": "tg2vh", "g,v'": "tg2vhh", "g',v": "tgh2vh"}
    for name, score in order.scores(pairs, **options).items():
        g.expect(f"matched_diag.{names[name]}", score)
    margins = order(pairs, **options)
    g.expect("matched_loss.type2", margins["sentence_video"] + margins["grounded_video"])
    g.expect("matched_loss.type3", margins["grounded_text"])
    g.expect("matched_loss.type4", sum(margins.values()))
    if len(text) <= 8 and not is_weighted:  # where the released batches pair the right samples
        leaves = {"type4.grad_text": text, "type4.grad_word": words, "type4.grad_video": video}
        prefix = "type4.grad_param.v2t_linear_xwp"
        leaves |= {f"{prefix}.{name}": p for name, p in order.word_predictor.named_parameters()}
        g.expect_gradients(sum(margins.values()), leaves)


def check_temporal(g: Golden) -> None:
    video = g.leaf("video_feat")
    layers = sum(name.endswith("ln_1.bias") for name in g.stored)
    output = temporal(g, layers)(video, g["video_mask"])
    g.expect("out", output)
    g.expect_gradients((output * g["cotangent"]).sum(), {"grad_video": video})


# --- GLSCL
#  ------------------------------------------------------------------------------------------------


class Features(nn.Module):
    """Stands in for a backbone where features are given."""

    def __init__(self, width: int, logit_scale: float | Tensor = 0.0):
        super().__init__()
        self.width, self.context_length = width, 16
        self.is_hf = True  # no text tower to start from
        self.logit_scale = nn.Parameter(torch.as_tensor(logit_scale).clone())


def check_conditioned_pooling(g: Golden) -> None:
    score = similarity.conditioned_pooling(
        g["cls"], g["video_feat"], g["video_mask"], temperature=3.0
    )
    for share in (0, 1):
        g.expect(f"share{share}.eval_global_logits", score)


def check_concepts(g: Golden) -> None:
    for share in [share for share in (0, 1) if f"share{share}.noun_out" in g.stored]:
        text, video = g[f"share{share}.noun_out"], g[f"share{share}.spatial_out"]
        g.expect(f"share{share}.score_s", similarity.concept_similarity(text, video))
        g.expect(
            f"share{share}.inter_diversity_loss",
            1e-4 * concept_losses.concept_diversity(video, margin=0.1),
        )
        for beta in (0.005, 0.02):
            loss = concept_losses.concept_consistency(
                text, video, target=0.75, weight=beta, reduction="batch_sum"
            )
            g.expect(f"share{share}.beta{beta}.intra_consistency_loss", loss)


def check_margin_ranking(g: Golden) -> None:
    for name in [
        name.removesuffix(".both.loss") for name in g.stored if name.endswith(".both.loss")
    ]:
        case, margin = name.rsplit(".m", 1)
        gram = g.leaf(f"{case}.S")
        loss = concept_losses.margin_ranking(gram, margin=float(margin))
        g.expect(f"{name}.both.loss", loss)
        g.expect_gradients(loss, {f"{name}.both.grad": gram})


def released_glscl(g: Golden, share: int, beta: float) -> glscl.GLSCL:
    """GLSCL with the stored decoders and queries over given features."""
    weights = {}
    for side in ("noun", "spatial"):
        weights |= load_file(g.folder / f"glscl_weights_{side}.safetensors")
    shares = {"shared_queries": bool(share), "shared_decoder": bool(share)}
    options = {"fidelity": "released", "temporal_layers": 0, "consistency_weight": beta, **shares}
    method = glscl.GLSCL(
        Features(32, weights["clip.logit_scale"]), glscl.GLSCLSettings(**options)
    ).eval()
    sides = (
        {"both": ("spatial", "noun")}
        if share
        else {"text": ("noun",) * 2, "video": ("spatial",) * 2}
    )
    for side, (queries, decoder) in sides.items():
        method.queries[side].weight.data = weights[f"{queries}_queries"]
        prefix = f"transformer_decoder_{decoder}."
        own = {
            key.removeprefix(prefix): value
            for key, value in weights.items()
            if key.startswith(prefix)
        }
        method.decoder[side].load_state_dict(own)
    return method.double()


def check_glscl(g: Golden) -> None:
    # In double precision: in b24 a unit sits on ReLU's kink, and float32 rounding decides whose
    # gradient it has.
    g.stored = {key: tensor.double() for key, tensor in g.stored.items()}
    for share, beta in [(share, beta) for share in (0, 1) for beta in (0.005, 0.02)]:
        method, key = released_glscl(g, share, beta), f"share{share}"
        leaves = {name: g.leaf(name) for name in ("cls", "text_feat", "video_feat")}
        sentence, words, frames = leaves.values()
        word_mask, frame_mask = g["text_mask"].bool(), g["video_mask"].bool()
        concepts = {"concepts": method.concepts("text", words, word_mask)}
        text = TextFeatures(sentence, words, word_mask, word_mask, concepts)
        concepts = {"concepts": method.concepts("video", frames, frame_mask)}
        video = VideoFeatures(None, frames, frame_mask, concepts)
        for side, name in ((text, "noun_out"), (video, "spatial_out")):
            g.expect(f"{key}.{name}", normalize(side.extras["concepts"], dim=-1))
        score = method.similarity(text, video)
        g.expect(f"{key}.eval_sim", score)
        g.expect(f"{key}.retrieve_logits_train", score)
        if len(sentence) != len(frames):
            continue
        parts = method.loss(text, video, TextVideoBatch(video_index=torch.arange(len(frames))))
        g.expect(f"{key}.beta{beta}.total_loss", parts["loss"])
        g.expect(f"{key}.beta{beta}.M_loss", parts["info_nce"])
        inputs = {
            "text": words,
            "cls": sentence,
            "video": frames,
            "logit_scale": method.backbone.logit_scale,
        }
        inputs["spatial_queries"] = method.queries["both" if share else "video"].weight
        g.expect_gradients(
            parts["loss"], {f"{key}.beta{beta}.grad_{k}": leaf for k, leaf in inputs.items()}
        )


# --- HMMC
#  ------------------------------------------------------------------------------------------------


def released_hmmc(width: int, top_frames: int = 2) -> hmmc.HMMC:
    """HMMC over given features."""
    settings = hmmc.HMMCSettings(fidelity="released", temporal_layers=0, top_frames=top_frames)
    return hmmc.HMMC(Features(width), settings)


def check_hmmc_video(g: Golden) -> None:
    frames = g.leaf("frame_feat")
    method = released_hmmc(frames.shape[2])
    positions, layers = len(g["weight.frame_position_embeddings.weight"]), 2
    module = TemporalTransformer(
        frames.shape[2], layers, int(g.name.removeprefix("hmmc_temporal_h")), positions
    )
    g.load(module, lambda name: f"weight.{'temporal_transformer.' * name.startswith('res')}{name}")
    method.temporal = module
    video = method.video_features(frames, torch.ones(frames.shape[:2], dtype=torch.bool)).video
    g.expect("visual_output", video)
    g.expect_gradients((video * g["cotangent"]).sum(), {"grad_frame_feat": frames})


def check_finetuning(g: Golden) -> None:
    leaves = {name: g.leaf(f"{name}_output") for name in ("query", "visual", "frame")}
    query, visual, frames = leaves.values()
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    text, video = (
        TextFeatures(query, query[:, None], mask, mask),
        VideoFeatures(visual, frames, mask),
    )
    for k in (2, 3):
        method = released_hmmc(query.shape[1], k)
        g.expect(f"scale100.eval_sim_top{k}", 100 * method.similarity(text, video))
        best = similarity.topk_frame_similarity(query, frames, k=k)
        g.expect(f"scale100.frame_logits_top{k}", 100 * best)
    parts = method.loss(text, video, TextVideoBatch(video_index=torch.arange(len(query))))
    for key, part in {"finetune": "loss", "vtm": "vtm", "ftm": "ftm"}.items():
        g.expect(f"scale100.{key}_loss", parts[part])
    g.expect_gradients(
        parts["loss"], {f"scale100.grad_{name}": leaf for name, leaf in leaves.items()}
    )


def check_queue_losses(g: Golden) -> None:
    q, k, frames, keys = (g.leaf(name) for name in ("q", "k", "frame_q", "frame_k"))
    queue, frame_queue, cold = g["queue"], g["frame_queue"], {"temperature": 0.07}
    cases = {
        "contrastive": (momentum_losses.queue_contrast(q, k, queue, **cold), q, k),
        "frame_self": (
            momentum_losses.neighbour_frames(frames, keys, frame_queue, **cold),
            frames,
            keys,
        ),
        "frame_cross": (
            momentum_losses.frame_text(frames, keys, frame_queue, q, k, queue, **cold),
            frames,
            q,
        ),
    }
    for name, (loss, *leaves) in cases.items():
        g.expect(f"{name}_loss", loss)
        g.expect_gradients(loss, {f"{name}_loss.grad{i}": leaf for i, leaf in enumerate(leaves)})


QUEUES = {"video": "v_cross", "title": "title_cross", "tag": "tag_cross"}
QUEUES |= {"frames": "frame_cross", "projected": "frame_proj"}
PUSHED = {
    "video": "v",
    "title": "title",
    "tag": "tag",
    "frames": "frame_fea",
    "projected": "frame_proj",
}


def check_queues(g: Golden) -> None:
    for name, theirs in QUEUES.items():
        queue = NegativeQueue(*g[f"enqueue.after4.queue_{theirs}_ng"].shape)
        for step in range(5):
            keys = g[f"enqueue.step{step}.{PUSHED[name]}"]
            queue.push(keys.flatten(0, -2))
            columns = keys[0].numel() // keys.shape[-1]  # released pointers count videos
            g.expect(f"enqueue.after{step}.queue_ptr", queue.pointer[None] / columns)
        g.expect(f"enqueue.after4.queue_{theirs}_ng", queue.keys)


def check_momentum(g: Golden) -> None:
    fast, slow = nn.Linear(5, 3), nn.Linear(5, 3)
    g.load(fast, lambda name: f"momentum.q.{name}")
    g.load(slow, lambda name: f"momentum.k_before.{name}")
    momentum_update(slow, fast, 0.99)
    for name, value in slow.state_dict().items():
        g.expect(f"momentum.k_after.{name}", value)


def check_word_head(g: Golden) -> None:
    head = hmmc_pretraining.WordHead(g["hidden"].shape[2], len(g["weight.bias"]))
    parts = {"dense": "transform.dense", "norm": "transform.LayerNorm", "decoder": "decoder"}

    def rename(name: str) -> str:
        part, kind = name.split(".")
        return "weight.bias" if name == "decoder.bias" else f"weight.{parts[part]}.{kind}"

    g.load(head, rename)
    hidden = g.leaf("hidden")
    loss = head.loss(hidden, g["labels"])
    g.expect("scores", head(hidden))
    g.expect("loss", loss)
    g.expect_gradients(loss, {"grad_hidden": hidden})


class LinearTowers(Features):
    """The stand-ins behind the pre-training numbers: linear towers over embeddings and pixels."""

    class Tokenizer:
        """Ids of the stand-in."""

        vocab_size, encoder = 60, {hmmc_pretraining.MASK_CHARACTER: 57}

    def __init__(self, width: int = 32, pixels: int = 12):
        super().__init__(width, 3.0)
        self.tokenizer, self.clip = self.Tokenizer(), nn.Module()
        self.clip.text, self.clip.visual = nn.Module(), nn.Module()
        self.clip.text.emb = nn.Embedding(self.tokenizer.vocab_size, width)
        self.clip.text.proj, self.clip.visual.proj = (
            nn.Linear(width, width),
            nn.Linear(pixels, width),
        )

    def encode_text(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Words, and their mean."""
        words = self.clip.text.proj(self.clip.text.emb(tokens))
        return words, (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """A linear map of the pixels."""
        return self.clip.visual.proj(frames.flatten(2))


class Tanh(nn.Module):
    """Stands in for the temporal transformer."""

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """tanh."""
        return torch.tanh(frames)


MODULES = {
    "text_encoder.": "backbone.clip.text.",
    "text_encoder_k.": "slow.backbone.clip.text.",
    "visual_encoder.": "backbone.clip.visual.",
    "visual_encoder_k.": "slow.backbone.clip.visual.",
    "v_projector.": "projector.",
    "v_projector_k.": "slow.projector.",
    "v_predictor.": "predictor.",
    "cls.bias": "word_head.decoder.bias",
    "cls.decoder.weight": "word_head.decoder.weight",
    "cls.transform.dense.": "word_head.dense.",
    "cls.transform.LayerNorm.": "word_head.norm.",
}
LAYERS = {"linear_hidden.1.": "0.", "linear_hidden.2.": "1.", "linear_out.": "3."}
CANCELLED = (
    "linear_hidden.1.bias",
    "v_projector.linear_out.bias",
)  # by BatchNorm: their gradient is rounding
PARTS = {
    "loss": "total_loss",
    "fam": "loss_FAM",
    "vtm": "loss_VTM",
    "ftm": "loss_FTM",
    "mlm": "loss_MLM",
}


def kit_name(name: str) -> str | None:
    """Name in the kit of a released pre-training parameter; None for one without use."""
    prefix = next((p for p in MODULES if name.startswith(p)), None)
    if prefix is None:
        return None
    rest = name.removeprefix(prefix)
    for theirs, ours in LAYERS.items():
        rest = rest.replace(theirs, ours)
    return MODULES[prefix] + rest


def released_pretraining(g: Golden) -> hmmc_pretraining.HMMCPretraining:
    """HMMC's pre-training as stored before the step, the words to mask as drawn there."""
    sizes = {"queue_size": 24, "frame_queue_size": 96, "projector_width": 48, "temporal_layers": 0}
    method = hmmc_pretraining.HMMCPretraining(
        LinearTowers(), hmmc_pretraining.HMMCPretrainingSettings(fidelity="released", **sizes)
    )
    method.temporal = method.slow["temporal"] = Tanh()
    state = {
        kit_name(key.removeprefix("before.")): t for key, t in g.stored.items() if "before." in key
    }
    state = {key: tensor for key, tensor in state.items() if key}
    for name, theirs in QUEUES.items():
        state[f"queues.{name}.keys"] = g[f"before.queue_{theirs}_ng"]
        state[f"queues.{name}.pointer"] = g["before.queue_ptr"][0] * (4 if "frame" in theirs else 1)
    scales = {key: tensor for key, tensor in method.state_dict().items() if "logit_scale" in key}
    method.load_state_dict(scales | state)
    return method


def check_pretraining(g: Golden) -> None:
    has_tags = g.name.endswith("bird")
    g.stored = load_file(g.folder / "hmmc_pretrain_bird.safetensors") | g.stored  # the same inputs
    method = released_pretraining(g)
    title, tag = g["title_mask"].bool(), g["tag_mask"].bool()
    extras = {"tag_tokens": g["tag_ids"], "tag_mask": tag} if has_tags else {}
    every, rows = torch.ones(6, 4, dtype=torch.bool), torch.arange(6)
    batch = TextVideoBatch(
        g["title_ids"], title, title.long(), g["video"], every, rows, rows, extras
    )
    method.before_step()
    text, video = method.encode_text(batch), method.encode_video(batch)
    for name in (
        ("title", "tag") if has_tags else ("title",)
    ):  # replace what was drawn by what is stored
        text.extras[f"{name}_masked"] = method.backbone.encode_text(
            g[f"mlm_{name}.masked_ids"], title
        )[0]
        text.extras[f"{name}_labels"] = g[f"mlm_{name}.labels"]
    parts = method.loss(text, video, batch)
    for ours, theirs in PARTS.items():
        g.expect(theirs, parts[ours])
    stored = [key for key in g.stored if key.startswith("grad.") and not key.endswith(CANCELLED)]
    named = dict(method.named_parameters())
    g.expect_gradients(
        parts["loss"], {key: named[kit_name(key.removeprefix("grad."))] for key in stored}
    )
    state = method.state_dict()
    for key in [key for key in g.stored if key.startswith("after.")]:
        if kit_name(key.removeprefix("after.")):
            g.expect(key, state[kit_name(key.removeprefix("after."))])
    for ours, theirs in QUEUES.items():
        if has_tags or ours != "tag":
            g.expect(f"after.queue_{theirs}_ng", state[f"queues.{ours}.keys"])


# --- Optimiser and checkpoints -------------------------------------------------------------------


def check_bertadam(g: Golden) -> None:
    for tag in ("noglobal", "global", "global.linear", "global.constant", "global.steps40"):
        W, s, b = (g.leaf(f"{tag}.{name}0") for name in "Wsb")
        groups = [
            {"params": [W]},
            {"params": [s], "lr": 1e-2},
            {"params": [b], "lr": 1e-2, "weight_decay": 0.0},
        ]
        name = tag.split(".")[-1] if tag.endswith(("linear", "constant")) else "cosine"
        optimizer = BertAdam(groups, 1e-3, 0.1, 20, name, weight_decay=0.2)
        tables = {key: [] for key in ("loss", "W", "s", "b", "get_lr_after_step")}
        for _ in g[f"{tag}.loss"]:
            loss = (g["X"] @ W.T + b - g["Y"]).square().mean() + 10 * b.square().sum()
            loss = loss + 0.01 * s.square().sum() + 0.01 * s.sum()
            optimizer.zero_grad()
            loss.backward()
            if tag != "noglobal":
                nn.utils.clip_grad_norm_([W, s, b], 1.0)
            optimizer.step()
            values = (
                loss.detach(),
                *(p.detach().clone() for p in (W, s, b)),
                torch.tensor([optimizer.next_rate(group) for group in optimizer.param_groups]),
            )
            for table, value in zip(tables.values(), values, strict=True):
                table.append(value)
        for key, table in tables.items():
            g.expect(f"{tag}.{key}", torch.stack(table))


def stored_batch(g: Golden, frame_mask: Tensor) -> TextVideoBatch:
    """The inputs of a checkpoint's numbers."""
    mask, rows = g["text_mask"].bool(), torch.arange(len(g["text_ids"]))
    return TextVideoBatch(g["text_ids"], mask, mask.long(), g["video"], frame_mask, rows, rows)


def check_glscl_checkpoint(g: Golden) -> None:
    method = official.load_official("glscl", sorted(g.folder.glob("glscl_full_ckpt-*.safetensors")))
    batch = stored_batch(g, g["video_mask"].bool())
    text, video = method.encode_text(batch), method.encode_video(batch)
    g.expect("text_feat", text.words)
    g.expect("cls", text.sentence)
    g.expect("video_feat", video.frames)
    g.expect("eval_sim", method.similarity(text, video))
    parts = method.loss(text, video, batch)
    g.stored |= load_file(g.folder / "glscl_full_train.safetensors")
    g.expect("total_loss", parts["loss"])
    text_tower, visual = method.backbone.clip.text, method.backbone.clip.visual
    leaves = {
        "clip.ln_final.weight": text_tower.ln_final.weight,
        "clip.logit_scale": method.backbone.logit_scale,
        "clip.text_projection": text_tower.text_projection,
        "clip.visual.proj": visual.proj,
        "frame_position_embeddings.weight": method.temporal.frame_position_embeddings.weight,
        "spatial_queries": method.queries["both"].weight,
    }
    g.expect_gradients(parts["loss"], {f"grad.{name}": leaf for name, leaf in leaves.items()})


def check_hmmc_checkpoint(g: Golden) -> None:
    files = sorted(g.folder.glob(f"{g.name.removesuffix('io')}ckpt-*.safetensors"))
    batch = stored_batch(g, torch.ones(g["frame_output"].shape[:2], dtype=torch.bool))
    for k in (2, 3):
        method = official.load_official("hmmc", files, top_frames=k)
        text, video = method.encode_text(batch), method.encode_video(batch)
        g.expect(f"eval_sim_top{k}", 100 * method.similarity(text, video))
    g.expect("query_output", text.sentence)
    g.expect("text_hidden", text.words)
    g.expect("visual_output", video.video)
    g.expect("frame_output", video.frames)
    g.expect("finetune_loss_train_mode", method.loss(text, video, batch)["loss"])


class Check(NamedTuple):
    """One row of the table: which function, which section, on which files, by which check."""

    function: str
    section: str
    files: str
    run: Callable[[Golden], None]
    committed: bool = True  # False: too large for tests/golden


CHECKS = [
    Check("similarity.token_interaction", "a", "dmae_wti_*", check_token_interaction),
    Check(
        "similarity.token_interaction, seqTransf",
        "a",
        "dmae_seqtransf_*",
        check_interaction_after_temporal,
    ),
    Check("contrastive.info_nce", "b", "dmae_losses", check_info_nce),
    Check("contrastive.neg_nce", "b", "dmae_losses", check_neg_nce),
    Check("tpm.TokenWeightPredictor", "c", "tpmcl_predictors", check_token_weights),
    Check("tpm.select_tokens", "c", "tpmcl_predictors", check_select_tokens),
    Check("tpm.PartialOrder", "c", "tpmcl_margin_*", check_partial_order),
    Check("temporal.TemporalTransformer", "d", "seqtransf_*", check_temporal),
    Check("similarity.conditioned_pooling", "e", "glscl_similarity_b*", check_conditioned_pooling),
    Check(
        "concept_similarity, _diversity, _consistency", "e", "glscl_similarity_b*", check_concepts
    ),
    Check("concepts.margin_ranking", "e", "glscl_margin_ranking", check_margin_ranking),
    Check("glscl.GLSCL", "e", "glscl_similarity_*", check_glscl, committed=False),
    Check("hmmc.HMMC, video feature", "f", "hmmc_temporal_*", check_hmmc_video, committed=False),
    Check("hmmc.HMMC, topk_frame_similarity", "f", "hmmc_finetune_*", check_finetuning),
    Check("queue_contrast, neighbour_frames, frame_text", "f", "hmmc_contrast", check_queue_losses),
    Check("momentum.NegativeQueue", "f", "hmmc_contrast", check_queues),
    Check("momentum.momentum_update", "f", "hmmc_contrast", check_momentum),
    Check("hmmc_pretraining.WordHead", "f", "hmmc_mlm_head", check_word_head),
    Check("hmmc_pretraining.HMMCPretraining", "f", "hmmc_pretrain_*", check_pretraining),
    Check("optim.BertAdam", "g", "bertadam", check_bertadam),
    Check(
        "official.load_official, GLSCL",
        "i",
        "glscl_full_io",
        check_glscl_checkpoint,
        committed=False,
    ),
    Check(
        "official.load_official, HMMC",
        "i",
        "hmmc_full_*_io",
        check_hmmc_checkpoint,
        committed=False,
    ),
]


def results(check: Check, folder: Path) -> Iterator[Golden]:
    """`check` on every file of `folder` it is made for.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: a file in which nothing could be compared.
    """
    files = sorted(folder.glob(f"{check.files}.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder}: expected {check.files}.safetensors")
    for file in files:
        g = Golden(file)
        check.run(g)
        if not g.compared:
            raise ValueError(f"{file.name}: nothing to compare for {check.function}")
        yield g


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=FULL if FULL.is_dir() else COMMITTED
    )
    folder = parser.parse_args().folder.resolve()
    print(
        f"{'function':44} {'section':8} {'numbers':>8} {'value error':>12} {'gradient error':>15}"
    )
    for check in [check for check in CHECKS if check.committed or folder != COMMITTED]:
        found = list(results(check, folder))
        value, gradient = max(g.value for g in found), max(g.gradient for g in found)
        numbers = sum(g.compared for g in found)
        print(f"{check.function:44} {check.section:8} {numbers:8} {value:12.1e} {gradient:15.1e}")


if __name__ == "__main__":
    main()
