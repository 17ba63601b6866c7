"""Stand-ins that several tests share."""

from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from tvrkit import files
from tvrkit.data.manifest import Split
from tvrkit.evaluation.evaluate import Evaluation
from tvrkit.recipes import load_recipe, recipe_names, to_dict
from tvrkit.settings import EvalConfig
from tvrkit.training import runs
from tvrkit.training.card import write_card

DATA = {
    "protocol": "shapes",
    "made_from": {"preset": "quick", "omit": 0.25},
    "split_hash": {"test": "0" * 64},
    "counts": {"test": {"videos": 40, "ok": 40, "captions": 80}},
    "captions_hash": {"test": {"en": "1", "zh": "2"}},
}

WIDTH, WORDS, FRAMES = 16, 7, 5  # of `TwoLayers` and of what it is given


def ranked(ranks_of_own, seed=0, **settings):
    """An `Evaluation` of one caption a video in which caption i has the rank `ranks_of_own[i]`."""
    rng, count = np.random.default_rng(seed), len(ranks_of_own)
    scores = np.zeros((count, count), np.float32)
    for row, rank in enumerate(ranks_of_own):
        others = rng.permutation(np.delete(np.arange(count), row))
        scores[row, np.insert(others, rank - 1, row)] = np.linspace(1, 0, count)
    return from_scores(scores, np.arange(count), **settings)


def from_scores(scores, video_of_caption, **settings):
    """An `Evaluation` of a matrix, with numbered ids and the labels of a whole test split."""
    ids = [
        [f"{kind}{row}" for row in range(n)] for kind, n in zip("cv", np.shape(scores), strict=True)
    ]
    settings = EvalConfig(**{"bootstrap": 100, **settings})
    labels = {"split": "test", "selection": "last", "complete": True, "missing": []}
    return Evaluation.from_similarity(scores, (*ids, video_of_caption), settings, **labels)


class TwoLayers(nn.Module):
    """The backbone's interface over one embedding and one linear layer."""

    def __init__(self):
        super().__init__()
        self.width = WIDTH
        self.context_length, self.is_hf = WORDS, True  # no text tower to start from
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.words, self.image = nn.Embedding(40, WIDTH), nn.Linear(3 * 2 * 2, WIDTH)

    def encode_text(self, tokens, mask):
        words = self.words(tokens)
        return words, words[torch.arange(len(tokens)), mask.sum(1) - 1]

    def encode_frames(self, frames):
        return self.image(frames.flatten(2).float() / 255 - 0.5)


def split(name, captions, video_ids, video_of_caption, *, language="en", missing=(), frames=None):
    """A `Split` with six frames a video, read from `frames`."""
    owner, missing = np.asarray(video_of_caption), list(missing)
    stored = [6] * len(video_ids), frames, Path("nowhere")
    return Split(name, language, captions, video_ids, owner, missing, not missing, *stored)


def finished_run(
    recipe,
    run="mine",
    seed=0,
    skill=1.0,
    data=(),
    card=(),
    ties="pessimistic",
    ceiling=None,
    **labels,
):
    """A finished run folder of 40 videos with 2 captions each; more `skill`, more recall."""
    owner = np.repeat(np.arange(40), 2)
    scores = np.random.default_rng(seed).normal(size=(80, 40))
    scores += skill * (owner[:, None] == np.arange(40))
    ids = [f"c{row}" for row in range(80)], [f"v{column}" for column in range(40)], owner
    whole = {
        "split": "test",
        "language": "en",
        "selection": "last",
        "complete": True,
        "missing": [],
    }
    settings = EvalConfig(ties=ties)
    evaluation = Evaluation.from_similarity(scores, ids, settings, **whole | labels)
    if ceiling:
        evaluation.metrics.update({f"{way} R@1 ceiling": ceiling for way in ("t2v", "v2t")})
    folder = files.run(run) / recipe / f"seed{seed}"
    evaluation.save(folder)
    about = {
        "recipe": recipe,
        "seed": seed,
        "data": DATA | dict(data),
        "selection": "last",
        "device": "CPU",
        "versions": {"numpy": np.__version__},
    }
    cost = {"parameters": 1234567, "train_seconds": 10.0 + seed, "peak_memory_mb": 900 + seed}
    known = recipe if recipe in recipe_names() else "clip4clip_shapes"
    config = to_dict(load_recipe(known, [f"eval.bootstrap={settings.bootstrap}"]))
    files.write_text(folder / "config.yaml", yaml.safe_dump(config))
    write_card(folder, about | cost | {"torch_threads": 1} | dict(card))
    return runs.Run(folder)


def ragged(texts, videos, frames, width, seed=0):
    """Sentences (texts, D), frames (videos, F, D) and their mask, of videos of any length."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, frames + 1, (videos,), generator=random)
    mask = torch.arange(frames) < lengths[:, None]
    features = torch.randn(videos, frames, width, generator=random)
    return torch.randn(texts, width, generator=random), features, mask
