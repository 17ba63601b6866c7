"""Heads on features that were made once, against frames and captions."""

import torch

from tests.benchmarks.bench_training import batch
from tvrkit.recipes import load_recipe
from tvrkit.training import runs
from tvrkit.training.given_weights import embed
from tvrkit.training.large_batch import backward

FROZEN = ["train.freeze_backbone=true", "train.epochs=20"]
RECIPE, SAME = "clip4clip_shapes", {"atol": 1e-4, "rtol": 1e-3}


def bench_an_epoch(against, tmp_path, monkeypatch):
    """All that an epoch does, reading included, with the embedded backbone."""
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    embed(RECIPE, tmp_path / "features", profile="smoke")
    cached = f"data.features={tmp_path / 'features'}"

    def trainer(*more):
        config = load_recipe(RECIPE, [*FROZEN, *more], "smoke")
        return runs.Experiment(config, 0, torch.device("cpu")).trainer

    def epoch(taken):
        return [taken.take_step(rows)[2]["loss"].item() for rows in taken.loader]

    plain, fast = trainer(), trainer(cached)
    what = "an epoch of CLIP4Clip's head, frozen tiny backbone, features, against frames"
    losses = against(lambda: epoch(plain), lambda: epoch(fast), what)
    torch.testing.assert_close(*map(torch.tensor, losses), **SAME)


def bench_a_step(against):
    """Without reading: a step with ViT-B/32, whose weights are random here."""
    sizes = ["data.prepared=none", "backbone.pretrained=null", *FROZEN]
    torch.manual_seed(0)
    method = runs.build_method(load_recipe("clip4clip_msrvtt", sizes)).eval()
    method.backbone.freeze()
    frames = batch(rows=8, frames=12, size=224)
    with torch.no_grad():
        words, sentence = method.backbone.encode_text(frames.tokens, frames.token_mask)
        features = torch.cat([sentence[:, None], words], dim=1)
        made = method.backbone.encode_frames(frames.frames)
    cached = frames.map(lambda tensor: tensor)
    cached.tokens, cached.frames = features, made

    def step(rows):
        method.zero_grad()
        return backward(method, rows)[0]["loss"]

    what = "a step of CLIP4Clip's head, frozen ViT-B/32, 8 clips, features, against frames"
    losses = against(lambda: step(frames), lambda: step(cached), what, rounds=3)
    torch.testing.assert_close(*losses, **SAME)
