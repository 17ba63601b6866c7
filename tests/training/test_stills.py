"""The embedded backbone: its BPE, its committed files, and how it is made."""

import json
from itertools import pairwise

import jieba
import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tvrkit import files
from tvrkit.files import sha256
from tvrkit.models.backbone import BACKBONES, create_backbone
from tvrkit.settings import BackboneConfig
from tvrkit.shapes.stills import sample_captions, stills
from tvrkit.training import stills as tiny

pytestmark = pytest.mark.slow

FILES = BACKBONES["tvrkit-tiny"]
SMALL = tiny.Pretraining(stills=24, held_out=8, captions=20, epochs=1, batch_size=8)


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(BackboneConfig()).eval()


# --- byte-level BPE ---


def test_few_chinese_tokens_reach_across_words(backbone):
    """Merges are learnt within words; a rare token spans two where jieba divides the same
    characters otherwise."""
    tokenizer, across, count = backbone.tokenizer, 0, 0
    for caption in sample_captions(200, seed=5)[1::2]:
        for run in tokenizer.pat.findall(tokenizer.clean_fn(caption)):
            ends = set(np.cumsum([len(word.encode("utf-8")) for word in jieba.cut(run)]))
            symbols = "".join(tokenizer.byte_encoder[byte] for byte in run.encode("utf-8"))
            sizes = [len(piece.removesuffix("</w>")) for piece in tokenizer.bpe(symbols).split(" ")]
            for start, stop in pairwise(np.cumsum([0, *sizes])):
                across += any(start < end < stop for end in ends)
                count += 1
    assert across / count < 0.02


def test_captions_of_shapes_fit_the_recipes_32_words(backbone):
    lengths = np.array(
        [len(backbone.tokenizer.encode(caption)) + 2 for caption in sample_captions(2000, seed=5)]
    )
    assert lengths.max() <= backbone.context_length
    assert (lengths <= 32).mean() > 0.97


# --- the committed files ---


def test_card_describes_the_committed_files():
    card = json.loads((files.ASSETS / "tvrkit-tiny.card.json").read_text())
    assert card["sha256"] == {
        path.name: sha256(path) for path in (FILES.config, FILES.merges, FILES.weights)
    }
    assert FILES.weights.stat().st_size < 5_000_000
    assert card["settings"] == vars(tiny.DEFAULTS)
    assert not card["git_commit"].endswith("-dirty")


@pytest.mark.parametrize("language", ["en", "zh"])
@torch.no_grad()
def test_embedded_weights_find_stills_in_both_languages(backbone, language):
    images, captions = stills(200, seed=1234)
    chosen = [
        next(text for text in texts if text.isascii() == (language == "en")) for texts in captions
    ]
    tokens = backbone.tokenizer(chosen)
    frames = torch.from_numpy(images).permute(0, 3, 1, 2)[:, None]
    said = normalize(backbone.encode_text(tokens, tokens > 0)[1], dim=-1)
    scores = said @ normalize(backbone.encode_frames(frames)[:, 0], dim=-1).T
    ranks = (scores >= scores.diagonal()[:, None]).sum(dim=1)
    assert (ranks <= 10).float().mean() > 0.6, (
        "by chance 0.05; captions that leave much out cannot do better"
    )
    assert ranks.float().median() <= 8


# --- pre-training ---


def test_pretraining_writes_a_model_that_loads_and_is_the_same_again(tmp_path):
    cards = [tiny.pretrain(tmp_path / name, seed=3, how=SMALL) for name in ("once", "twice")]
    assert cards[0]["sha256"] == cards[1]["sha256"]
    assert cards[0]["loss_per_epoch"] == cards[1]["loss_per_epoch"]
    assert np.isfinite(cards[0]["loss_per_epoch"]).all()
    assert cards[0] == json.loads((tmp_path / "once/tvrkit-tiny.card.json").read_text())
    names = {FILES.config.name, FILES.merges.name, FILES.weights.name, "tvrkit-tiny.card.json"}
    assert {path.name for path in (tmp_path / "once").iterdir()} == names
    made = create_backbone(
        BackboneConfig("tvrkit-tiny", str(tmp_path / "once" / FILES.weights.name))
    )
    assert all(parameter.isfinite().all() for parameter in made.parameters())


def test_interrupted_pretraining_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.pretrain(tmp_path, how=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_loss_that_is_no_number_stops_pretraining(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "_loss", lambda *args: torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError, match="epoch 1: expected a finite loss, got nan"):
        tiny.pretrain(tmp_path, how=SMALL)
