"""Mined pairs counted by hand, likeness of captions, what NegNCE adds, and the plane of the
embedding view."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tests import fakes
from tvrkit import inspection
from tvrkit.losses.contrastive import info_nce, neg_nce
from tvrkit.losses.miners import margin_negatives

OWNER = np.array([0, 0, 1, 2])


@pytest.fixture
def masks():
    rng = np.random.default_rng(0)
    return rng.random((4, 3)) < 0.5, {
        "wanted": rng.random((4, 3)) < 0.4,
        "none": np.zeros((4, 3), bool),
    }


def test_quality_is_counted_pair_by_pair(masks):
    mined, kinds = masks
    found = inspection.mining_quality(mined, OWNER, kinds)
    pairs = [(i, j) for i in range(4) for j in range(3) if mined[i, j]]
    wanted = [(i, j) for i in range(4) for j in range(3) if kinds["wanted"][i, j]]
    both = set(pairs) & set(wanted)
    assert found["mined per caption"][0] == len(pairs) / 4
    assert found["wanted, % of mined"][0] == pytest.approx(100 * len(both) / len(pairs))
    assert found["wanted, % found"][0] == pytest.approx(100 * len(both) / len(wanted))
    assert found["none, % of mined"] == (0, 0, 0)
    assert np.isnan(found["none, % found"]).all()
    assert np.isnan(
        inspection.mining_quality(np.zeros_like(mined), OWNER, kinds)["wanted, % of mined"]
    ).all()
    for value, low, high in list(found.values())[:3]:
        assert low <= value <= high


def test_over_training_is_each_epoch_by_itself_and_jaccard_between_neighbours():
    pairs = {
        1: [(0, 1, 0.2), (0, 2, 0.4), (3, 0, 0.6)],
        2: [(0, 2, 0.1), (3, 0, 0.3), (2, 2, 0.2), (1, 1, 0.4)],
    }
    mined = pd.DataFrame(
        [(epoch, *pair) for epoch, rows in pairs.items() for pair in rows],
        columns=["epoch", "row", "column", "excess"],
    )
    wanted = np.zeros((4, 3), bool)
    wanted[0, 2] = wanted[2, 2] = True
    table = inspection.over_training(mined, [1, 2], OWNER, {"wanted": wanted})
    value = table.set_index(["epoch", "quantity"])["value"]
    assert (value[1, "mined per caption"], value[2, "mined per caption"]) == (0.75, 1.0)
    assert value[1, "excess over the match"] == pytest.approx(0.4)
    assert value[2, "excess over the match"] == pytest.approx(0.25)
    assert value[1, "wanted, % of mined"] == pytest.approx(100 / 3)
    assert value[2, "wanted, % found"] == pytest.approx(100)
    assert value[2, "mined again, %"] == pytest.approx(100 * 2 / 5)
    assert (1, "mined again, %") not in value.index


def test_an_epoch_in_which_nothing_is_mined_counts_as_one(tmp_path):
    mined = pd.DataFrame({"epoch": [1, 3], "row": 0, "column": 1, "excess": 0.2})
    table = inspection.over_training(
        mined, [1, 2, 3, 4, 5], OWNER, {"wanted": np.zeros((4, 3), bool)}
    )
    value = table.pivot(index="epoch", columns="quantity", values="value")
    assert value["mined per caption"].tolist() == [0.25, 0, 0.25, 0, 0]
    np.testing.assert_allclose(value["excess over the match"], [0.2, np.nan, 0.2, np.nan, np.nan])
    np.testing.assert_allclose(
        value["mined again, %"], [np.nan, 0, 0, 0, np.nan]
    )  # of the neighbour, not of epoch 1
    mined.iloc[:0].to_csv(tmp_path / "mined.csv", index=False)
    table = inspection.over_training(
        pd.read_csv(tmp_path / "mined.csv"), [1, 2], OWNER, {"wanted": np.ones((4, 3), bool)}
    )
    assert table[table.quantity == "mined per caption"].value.tolist() == [0, 0]


def cosine(a, b, size):
    a, b = (
        Counter(
            (" " * (size - 1) + t + " " * (size - 1))[i : i + size]
            for i in range(len(t) + size - 1)
        )
        for t in (a, b)
    )
    norm = (sum(v * v for v in a.values()) * sum(v * v for v in b.values())) ** 0.5
    return sum(count * b[gram] for gram, count in a.items()) / norm


@pytest.mark.parametrize("size", [2, 3])
def test_likeness_is_the_largest_cosine_of_counted_ngrams(size, monkeypatch):
    monkeypatch.setattr(inspection.negatives, "BLOCK", 3)
    captions = ["a red dot", "红色的圆", "a red  DOT", "a dog runs", "red", "红色的方"]
    owner = np.array([1, 0, 2, 0, 1, 2])  # not sorted by video
    found = inspection.caption_likeness(captions, owner, size=size)
    clean = [" ".join(text.lower().split()) for text in captions]
    for row in range(6):
        for video in range(3):
            best = max(
                cosine(clean[row], clean[other], size)
                for other in range(6)
                if owner[other] == video
            )
            assert found[row, video] == pytest.approx(best, abs=1e-5)
    assert found[0, 2] == pytest.approx(1, abs=1e-5)  # the same but for case and blanks
    np.testing.assert_allclose(found[np.arange(6), owner], 1, atol=1e-5)


def test_kinds_by_text_are_a_partition():
    texts = ["a small red dot goes left", "a red dot", "A small red dot goes left, up", "a dog"]
    captions = pd.DataFrame({"caption": texts})
    split = fakes.split("test", captions, list("xyz"), np.array([0, 0, 1, 2]))
    kinds = inspection.kinds_of_pairs(split, None)
    near = [[False, True, False], [False] * 3, [True, False, False], [False] * 3]
    assert kinds["near-duplicate caption"].tolist() == near
    assert (sum(mask.astype(int) for mask in kinds.values()) == 1).all()


def test_push_is_the_gradient_by_finite_differences():
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()
    options = {"logit_scale": 4.0, "margin": 0.1, "clamp": None}
    alone, added = inspection.push(scores, negative_weight=0.5, **options)
    for i in range(5):
        for j in range(5):
            step = torch.zeros_like(scores)
            step[i, j] = 1e-6
            by_hand = (
                info_nce(scores + step, logit_scale=4.0) - info_nce(scores - step, logit_scale=4.0)
            ) / 2e-6
            assert alone[i, j] == pytest.approx(float(by_hand), abs=1e-6)
            sides = [
                neg_nce(scores + sign * step, negative_weight=0.5, **options) for sign in (1, -1)
            ]
            whole = (sides[0] - sides[1]) / 2e-6
            assert alone[i, j] + added[i, j] == pytest.approx(float(whole), abs=1e-5)
    assert abs(added.sum()) < 1e-9
    mined = margin_negatives(scores, torch.eye(5, dtype=torch.bool), margin=0.1).numpy()
    assert mined[added > 0].mean() > 0.5
    assert added.diagonal().sum() < 0


def test_embed_takes_the_methods_video_vector_or_the_mean_of_its_valid_frames():
    rng = torch.Generator().manual_seed(0)
    frames, mask = torch.randn(2, 3, 4, generator=rng), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    videos = SimpleNamespace(video=None, frames=frames, mask=mask)
    sentence = torch.randn(3, 4, generator=rng)
    encoded = SimpleNamespace(texts=SimpleNamespace(sentence=sentence), videos=videos)
    texts, means = inspection.embed(encoded)
    np.testing.assert_allclose(texts, F.normalize(sentence, dim=1), atol=1e-6)
    unit = F.normalize(frames, dim=2)
    by_hand = F.normalize(torch.stack([(unit[0, 0] + unit[0, 1]) / 2, unit[1].mean(0)]), dim=1)
    np.testing.assert_allclose(means, by_hand, atol=1e-6)
    videos.video = torch.tensor([[3.0, 0, 0, 0], [0, 2, 0, 0]])
    np.testing.assert_allclose(inspection.embed(encoded)[1], np.eye(4)[[0, 1]], atol=1e-6)


@pytest.fixture
def gallery():
    """Scores of 40 captions and 20 videos, and kinds of their pairs."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(20), 2)
    match = owner[:, None] == np.arange(20)
    near = ~match & (rng.random(match.shape) < 0.1)
    kinds = {"match": match, "near": near, "other": ~match & ~near}
    return rng.normal(size=match.shape), owner, kinds


def test_miners_mine_no_match_and_as_many_as_the_margin(gallery):
    scores, owner, kinds = gallery
    mined = inspection.mined_sets(scores, kinds["match"])
    own = scores[np.arange(40), owner]
    best = np.array([scores[owner == video, video].max() for video in range(20)])
    by_hand = ((scores > own[:, None]) | (scores > best)) & ~kinds["match"]
    # a video has two matches here, the best of which counts for it
    np.testing.assert_array_equal(mined["margin"], by_hand)
    assert not (mined["top_k"] & kinds["match"]).any()
    assert set(mined["top_k"].sum(axis=1)) == {round(by_hand.sum() / 40)}


def test_queries_of_a_gallery_are_the_hardest_of_different_neighbourhoods():
    owner, wanted = np.array([0, 1, 2, 3]), np.zeros((4, 4), bool)
    mined = np.array([[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    wanted[3, 0] = True
    assert inspection.hardest_queries(mined, wanted, owner) == [3, 1]


def test_push_by_kind_is_1_on_the_average_pair_and_larger_where_scores_are(gallery):
    scores, owner, kinds = gallery
    scores = scores + 2.0 * kinds["near"]
    options = {"batch_size": 10, "batches": 20, "negative_weight": 0.5, "clamp": None}
    table = inspection.push_by_kind(scores, kinds, owner, logit_scale=2.0, **options)
    base = table[table.side == "InfoNCE"].set_index("kind")
    assert (base.value * base.pairs).sum() / base.pairs.sum() == pytest.approx(1)
    assert base.value["near"] > 1 > base.value["other"]
    assert base.pairs.sum() == pytest.approx(10 * 10 - 10)
    assert ((table.low <= table.value) & (table.value <= table.high)).all()


def test_nearness_is_the_gap_to_other_videos(gallery):
    _, owner, kinds = gallery
    videos = np.eye(20)
    gaps = inspection.nearness(videos[owner], videos, kinds, owner)
    assert gaps["other"][0] == pytest.approx(1)
    assert gaps["match"][0] == pytest.approx(0)


def test_near_duplicates_are_the_mined_pairs_with_alike_captions():
    captions = pd.DataFrame({"caption": ["a dot", "a dog", "a cat"], "video_id": list("xyz")})
    split = SimpleNamespace(captions=captions, video_ids=list("xyz"))
    likeness = np.array([[1, 0.9, 0.85], [0.9, 1, 0], [0, 0, 1]])
    mined = np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0]], bool)
    kinds = {"near": likeness == 0.9, "other": likeness != 0.9}
    table = inspection.near_duplicates(split, mined, likeness, kinds)
    assert table.to_numpy().tolist() == [
        ["a dot", "a dog", 0.9, "near"],
        ["a dot", "a cat", 0.85, "other"],
    ]


def test_the_plane_holds_the_most_variance_and_no_gap_between_the_sides():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(40, 2)) * [3, 2]
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    texts = latent @ axes[:2] + 5 * axes[2]  # shifted: the modality gap
    videos = latent @ axes[:2] - 5 * axes[2] + 0.01 * rng.normal(size=(40, 6))
    flat_texts, flat_videos, share = inspection.plane(texts, videos)
    assert share > 0.999
    np.testing.assert_allclose(flat_texts, flat_videos, atol=0.1)
    between = np.linalg.norm(flat_texts[:, None] - flat_texts, axis=2)
    np.testing.assert_allclose(between, np.linalg.norm(texts[:, None] - texts, axis=2), atol=1e-3)
    again = inspection.plane(texts[::-1], videos[::-1])
    np.testing.assert_allclose(again[0][::-1], flat_texts, atol=1e-9)
