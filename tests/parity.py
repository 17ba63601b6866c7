"""Parity with the released code: `python -m tests.parity [folder]` prints function, section, largest error.

A check computes what the kit returns on the stored inputs and compares it with every stored number it finds. The
tests run the same checks on the numbers in `tests/golden`, and on the full set where that is at hand.
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

from tvrkit.losses import info_nce, neg_nce
from tvrkit.methods.dmae import POOLING, PartialOrder, TokenWeightPredictor, select_tokens, token_weight
from tvrkit.similarity import token_interaction
from tvrkit.temporal import TemporalTransformer

COMMITTED = Path(__file__).parent / "golden"
FULL = Path(os.environ.get("TVRKIT_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden"))


class Golden:
    """Stored numbers of one file, and the largest errors against them.

    Attributes:
        value: largest |error| of a value, relative where the value exceeds 1.
        gradient: largest |error| of a gradient, relative to the gradient's largest entry.
        compared: how many stored tensors were met.
    """

    def __init__(self, path: Path):
        self.stored = load_file(path)
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
        for key, gradient in zip(leaves, torch.autograd.grad(output, [*leaves.values()], **options), strict=True):
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
    return g.load(module, lambda name: f"weight.{'transformerClip.' * name.startswith('res')}{name}")


def interaction(g: Golden, name: str, second: bool, mask: Tensor, text: Tensor, words: Tensor, video: Tensor):
    """DMAE's released score from raw words and a video that is ready."""
    words, video_mask, options = normalize(words, dim=-1), g["video_mask"], {"second_frame": second}
    heads = {"text": None, "video": None}
    if name.endswith("wti"):
        heads = {side: linear(g[f"weight.{side}_weight_fc.weight"]) for side in heads}
    options["video_weight"] = token_weight(video, video_mask, heads["video"])
    score = token_interaction(text, video, mask[:, :1], video_mask, **options)
    if name.startswith("att"):
        weight = token_weight(words, mask, heads["text"], renormalise=False)
        score = (score + token_interaction(words, video, mask > 0, video_mask, text_weight=weight, **options)) / 2
    return score


def check_token_interaction(g: Golden) -> None:
    for name in ("ti", "wti", "att_ti", "att_wti"):
        for second in (0, 1):
            for mask in ("plain", "twm"):
                key = f"{name}.nfc{second}.{mask}"
                text, words, video = (g.leaf(k) for k in ("text_feat", "word_feat_raw", "video_feat_raw"))
                weights = g["word_mask" if mask == "plain" else "twm_mask"]
                score = interaction(g, name, bool(second), weights, text, words, normalize(video, dim=-1))
                g.expect(f"{key}.sim", score)
                leaves = {f"{key}.grad_text": text, f"{key}.grad_word": words, f"{key}.grad_video": video}
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
        for kind in ("linear", *POOLING):
            query, key = (g.leaf(name) for name in names)
            predictor = TokenWeightPredictor(kind, key.shape[2], query.shape[1], key.shape[1])
            g.load(predictor, lambda name, prefix=f"{side}.{kind}": f"{prefix}.weight.{name}")
            weight = predictor(query, key)
            g.expect(f"{side}.{kind}.attn", weight)
            leaves = {f"{side}.{kind}.grad_q": query, f"{side}.{kind}.grad_k": key}
            g.expect_gradients((weight * g[f"{side}.{kind}.cotangent"]).sum(), leaves)


def check_select_tokens(g: Golden) -> None:
    for name in [name.removesuffix(".policy") for name in g.stored if name.endswith(".policy")]:
        source, threshold = name.split(".select")
        tokens = g["k_frames" if name.startswith("t2v") else "k_words"]
        kept, policy = select_tokens(tokens, g[f"{source}.attn"], float(threshold))
        g.expect(f"{name}.policy", policy)
        g.expect(f"{name}.tokens", kept)


def check_partial_order(g: Golden) -> None:
    text, words, video = (g.leaf(k) for k in ("text_feat", "word_feat", "video_feat"))
    width, repairs = text.shape[2], ("mask_aware", "normalise_partial", "straight_through")
    order = PartialOrder(width, words.shape[1], video.shape[1], mask_fill="zero", **dict.fromkeys(repairs, False))
    sides = {"word_predictor": "v2t_linear_xwp", "frame_predictor": "t2v_linear_xwp"}
    g.load(order, lambda name: f"weight.{sides[name.split('.')[0]]}.{name.split('.', 1)[1]}")
    is_weighted = "weight.video_weight_fc.weight" in g.stored
    options = {
        "temporal": temporal(g, 1) if "weight.frame_position_embeddings.weight" in g.stored else None,
        "weigh": linear(g["weight.video_weight_fc.weight"]) if is_weighted else None,
    }
    pairs = (text[:, 0], words, video, g["word_mask"].bool(), g["video_mask"].bool())
    names = {"t,v": "t2vh", "t,v'": "t2vhh", "g,v": "tg2vh", "g,v'": "tg2vhh", "g',v": "tgh2vh"}
    for name, score in order.scores(*pairs, **options).items():
        g.expect(f"matched_diag.{names[name]}", score)
    margins = order(*pairs, **options)
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


class Check(NamedTuple):
    """One row of the table: which function, which section, on which files, by which check."""

    function: str
    section: str
    files: str
    run: Callable[[Golden], None]


CHECKS = [
    Check("similarity.token_interaction", "a", "dmae_wti_*", check_token_interaction),
    Check("similarity.token_interaction, seqTransf", "a", "dmae_seqtransf_*", check_interaction_after_temporal),
    Check("losses.info_nce", "b", "dmae_losses", check_info_nce),
    Check("losses.neg_nce", "b", "dmae_losses", check_neg_nce),
    Check("dmae.TokenWeightPredictor", "c", "tpmcl_predictors", check_token_weights),
    Check("dmae.select_tokens", "c", "tpmcl_predictors", check_select_tokens),
    Check("dmae.PartialOrder", "c", "tpmcl_margin_*", check_partial_order),
    Check("temporal.TemporalTransformer", "d", "seqtransf_*", check_temporal),
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
    parser.add_argument("folder", type=Path, nargs="?", default=FULL if FULL.is_dir() else COMMITTED)
    folder = parser.parse_args().folder
    print(f"{'function':44} {'section':8} {'numbers':>8} {'value error':>12} {'gradient error':>15}")
    for check in CHECKS:
        found = list(results(check, folder))
        value, gradient = max(g.value for g in found), max(g.gradient for g in found)
        numbers = sum(g.compared for g in found)
        print(f"{check.function:44} {check.section:8} {numbers:8} {value:12.1e} {gradient:15.1e}")


if __name__ == "__main__":
    main()
