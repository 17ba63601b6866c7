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
from tvrkit.shapes.scenes import FACTORS
from tvrkit.shapes.stills import sample_captions
from tvrkit.training import tiny_backbone as tiny

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


SEES = {"colour": 95, "size": 95, "shape": 90, "place": 90}  # % of pairs, chance 50


def test_embedded_weights_tell_each_factor_from_a_swapped_one(backbone):
    """The gate of the asset: on stills that were never trained on, in both languages."""
    found = tiny.own_over_swapped(backbone, 200, seed=1234)
    assert {language: set(shares) for language, shares in found.items()} == {
        "en": set(SEES),
        "zh": set(SEES),
    }
    short = [
        (language, factor, share)
        for language, shares in found.items()
        for factor, share in shares.items()
        if share < SEES[factor]
    ]
    assert not short, short


def test_own_over_swapped_is_at_chance_for_untrained_towers(backbone):
    random = create_backbone(BackboneConfig("tvrkit-tiny", pretrained=None)).eval()
    random.tokenizer = backbone.tokenizer
    shares = tiny.own_over_swapped(random, 100, seed=1234)
    assert all(35 < share < 65 for found in shares.values() for share in found.values())


def test_embedded_weights_find_stills_in_both_languages(backbone):
    for language, found in tiny.retrieval(backbone, 200, seed=1234).items():
        # by chance 5; captions that leave much out cannot do better
        assert found["R@10"] > 60, language
        assert found["MdR"] <= 8, language


def test_table_of_factors_is_the_mean_cross_entropy_of_what_is_told():
    torch.manual_seed(0)
    table, features = tiny.FactorTable(6), normalize(torch.randn(3, 6), dim=-1)
    values = torch.full((3, len(FACTORS)), -1)
    values[0, 0], values[2, 0], values[1, 3] = 1, 4, 0
    losses = []
    for column, rows in ((0, [0, 2]), (3, [1])):
        vectors = table.vectors[column] / table.vectors[column].norm(dim=1, keepdim=True)
        terms = []
        for row in rows:
            scores = [(tiny.FACTOR_SCALE * features[row] @ vector).item() for vector in vectors]
            terms.append(np.log(np.exp(scores).sum()) - scores[values[row, column]])
        losses.append(np.mean(terms))
    assert table(features, values).item() == pytest.approx(sum(losses) / len(FACTORS), rel=1e-5)


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
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "info_nce", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.pretrain(tmp_path, how=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_loss_that_is_no_number_stops_pretraining(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "info_nce", lambda *args, **options: torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError, match="epoch 1: expected a finite loss, got nan"):
        tiny.pretrain(tmp_path, how=SMALL)
