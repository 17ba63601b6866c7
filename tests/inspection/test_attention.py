"""Scoring of attention and mining against truth, with naive loops as oracles."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import fakes
from tvrkit import inspection
from tvrkit.data.batch import TextFeatures, VideoFeatures
from tvrkit.models.method import Method
from tvrkit.settings import DataConfig
from tvrkit.shapes.render import render
from tvrkit.shapes.scenes import Scene
from tvrkit.shapes.truth import Truth

FIRST = {
    "shape": "circle",
    "colour": "red",
    "size": "small",
    "place": "left",
    "motion": "right",
    "background": "plain",
    "then": "up",
    "shape2": "",
    "colour2": "",
    "motion2": "",
}
EVERYTHING = ["shape", "colour", "size", "place", "motion", "background", "then"]


@pytest.fixture(scope="module")
def truth():
    """Family of a, a blue a, and a with its motions in the other order; d repeats a; e is something
    else."""
    scenes = {
        "a": FIRST,
        "b": FIRST | {"colour": "blue"},
        "c": FIRST | {"motion": "up", "then": "right"},
        "d": FIRST,
        "e": FIRST | {"shape": "star", "colour": "white", "place": "centre", "motion": "grow"},
    }
    family = {"a": "a", "b": "a", "c": "a", "d": "a", "e": "e"}
    videos = [
        {
            "video_id": name,
            "split": "test",
            "family": family[name],
            "informative": [True],
            "scene": scene,
            "duplicate_of": "a" if name == "d" else None,
            "distractors": [""],
        }
        for name, scene in scenes.items()
    ]
    spans = [(2, 5, "colour"), (6, 12, "shape"), (13, 23, "motion")]
    said = {"a0": ("a", EVERYTHING), "a1": ("a", ["shape", "size"]), "e0": ("e", EVERYTHING)}
    captions = [
        {
            "caption_id": name,
            "video_id": video,
            "language": "en",
            "mentioned": factors,
            "spans": spans,
            "partial_of": None,
        }
        for name, (video, factors) in said.items()
    ]
    return Truth(pd.DataFrame(videos), pd.DataFrame(captions))


@given(st.lists(st.text("abc,é圆", min_size=1), min_size=2))
def test_word_spans_cut_where_blanks_are(words):
    caption = "  ".join(words)
    assert [caption[start:end] for start, end in inspection.word_spans(caption)] == words


def test_word_spans_of_chinese_are_characters():
    assert inspection.word_spans("红色的圆") == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_token_values_are_summed_over_the_word_they_belong_to():
    words = inspection.word_spans("a red circle cut")
    tokens = [(1, (0, 1)), (2, (2, 5)), (3, (6, 9)), (4, (9, 12))]
    values = np.array([9.0, 0.1, 0.2, 0.3, 0.4, 9.0])
    np.testing.assert_allclose(inspection.per_word(values, tokens, words), [0.1, 0.2, 0.7, 0])
    pairs = inspection.per_word(np.stack([values, -values], axis=1), tokens, words)
    np.testing.assert_allclose(pairs, [[0.1, -0.1], [0.2, -0.2], [0.7, -0.7], [0, 0]])
    assert inspection.overlapping(words, [(2, 5, "colour"), (11, 20, "shape")]).tolist() == [
        0,
        1,
        1,
        1,
    ]
    assert inspection.overlapping(words, []).tolist() == [False] * 4


def test_words_over_frames_of_every_kind_of_method():
    """Three tokens of two words, behind SOT; "crimson" has two of them."""
    tokens = [(1, (0, 1)), (2, (2, 6)), (3, (6, 9))]
    cosines = np.array([[9.0, 9], [1, 2], [3, 4], [5, 8], [9, 9]])
    seen = inspection.words_over_frames({"word_frame": cosines}, "a crimson", tokens)
    assert (seen[0].tolist(), *seen[1:]) == ([[1, 2], [4, 6]], ["a", "crimson"], "cosine")
    on_words, on_frames = np.eye(5)[[1, 2, 3]], np.array([[1.0, 0], [0, 1], [0, 1]])
    maps = {"concept_words": on_words, "concept_frames": on_frames}
    shares, labels, what = inspection.words_over_frames(maps, "a crimson", tokens)
    assert (shares.tolist(), labels) == ([[1, 0], [0, 2]], ["a", "crimson"])
    assert what.startswith("share")
    plain = {"frame_text": np.array([0.1, 0.2])}
    assert inspection.words_over_frames(plain, "a crimson", tokens)[1] == ["sentence"]
    cut_off = inspection.words_over_frames({"word_frame": cosines}, "a crimson", tokens[:1])[0]
    assert cut_off.tolist() == [[1, 2], [0, 0]]


def test_kinds_of_pairs(truth):
    captions = pd.DataFrame({"caption_id": ["a0", "a1", "e0"]})
    split = fakes.split("test", captions, list("abcde"), np.array([0, 0, 4]))
    kinds = inspection.kinds_of_pairs(split, truth)
    named = [
        [next(kind for kind in kinds if kinds[kind][row, column]) for column in range(5)]
        for row in range(3)
    ]
    far = "other"
    assert named == [
        ["match", "one factor apart", "one factor apart", "same meaning", far],
        [
            "match",
            "same meaning",
            "same meaning",
            "same meaning",
            far,
        ],  # "small circle": true of all but e
        [far, far, far, far, "match"],
    ]
    assert (sum(mask.astype(int) for mask in kinds.values()) == 1).all()


def test_contradicting_words_name_the_factors_in_which_the_videos_differ(truth):
    caption = "a red circle goes right"
    assert inspection.contradicting_words(truth, "a0", caption, "b").tolist() == [0, 1, 0, 0, 0]
    assert inspection.contradicting_words(truth, "a0", caption, "c").tolist() == [0, 0, 0, 1, 1]
    assert not inspection.contradicting_words(truth, "a0", caption, "d").any()


def test_frames_seen_are_those_an_evaluation_reads():
    clips = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    store = SimpleNamespace(count=lambda _: len(clips), read=lambda _, indices: clips[indices])
    indices, frames = inspection.frames_seen(
        SimpleNamespace(frames=store), DataConfig("x", max_frames=5), "v"
    )
    assert indices.tolist() == [1, 3, 5, 7, 9]
    assert frames[:, 0, 0, 0].tolist() == [1, 3, 5, 7, 9]


# --- deletion test
#  ------------------------------------------------------------------------------------------

QUERIES, TOKENS = 60, 8


def planted(rng):
    """Place of the one token that counts, and the score of a method that knows it: own video 1
    while it stays."""
    place = rng.integers(TOKENS, size=QUERIES)
    others = 0.2 + 0.1 * rng.random((QUERIES, QUERIES))

    def score(rows):
        found = others.copy()
        found[range(QUERIES), range(QUERIES)] = [
            float(row[at]) for row, at in zip(rows, place, strict=True)
        ]
        return found

    return place, score


def test_the_one_token_that_counts_gives_the_largest_gap():
    place, score = planted(np.random.default_rng(0))
    table = inspection.deletion_test(np.eye(TOKENS)[place], score, np.arange(QUERIES))
    hits = table.pivot_table(index="order", columns="share", values="hit")
    assert hits.loc["highest"].tolist() == [100, 0, 0, 0, 0]
    assert hits.loc["lowest"].tolist() == [100] * 5
    expected = 100 * (
        1 - np.mean(inspection.attention.SHARES)
    )  # random removal spares the token that often
    margin, (mean, low, high) = inspection.deletion_gaps(table, "word").values()
    assert low <= expected <= high
    turned = table.replace({"order": {"highest": "lowest", "lowest": "highest"}})
    assert inspection.deletion_gaps(turned, "word")["word deletion gap, R@1 (points)"][2] < 0
    margins = table.pivot_table(index="order", columns="share", values="margin")
    assert margins[0.0].tolist() == pytest.approx([100] * 3)
    assert (margins.loc["highest"][1:] < 0).all()  # 0 - 0.25: below the other videos
    assert margin[0] == pytest.approx(mean * 1 / 0.75, rel=0.02)


@pytest.mark.parametrize("equal", [False, True])
def test_weights_that_say_nothing_give_no_gap(equal):
    rng = np.random.default_rng(1)
    _, score = planted(rng)
    weights = [np.ones(TOKENS) if equal else rng.random(TOKENS) for _ in range(QUERIES)]
    table = inspection.deletion_test(weights, score, np.arange(QUERIES))
    _, low, high = inspection.deletion_gaps(table, "word")["word deletion gap, R@1 (points)"]
    assert low <= 0 <= high


@given(st.integers(1, 20), st.sampled_from((0.0, *inspection.attention.SHARES, 1.0)))
def test_removal_takes_the_highest_spares_one_and_takes_one(count, share):
    rng = np.random.default_rng(0)
    priority = rng.permutation(count)
    left = inspection.remaining(priority, share, rng)
    assert left.any()
    assert left.all() == (share == 0 or count == 1)
    if not left.all():
        assert priority[left].max() < priority[~left].min()
        assert abs((~left).sum() - share * count) <= 1


def test_curves_of_a_deletion_test_are_means_with_their_intervals():
    place, score = planted(np.random.default_rng(2))
    also = {"first": [np.arange(TOKENS)[::-1]] * QUERIES}
    table = inspection.deletion_test(np.eye(TOKENS)[place], score, np.arange(QUERIES), also=also)
    curves = inspection.deletion_curves(table).set_index(["quantity", "order", "removed"])
    rows = table[(table.order == "random") & (table.share == 0.5)]
    assert curves.loc[("hit", "random", 0.0)].tolist() == [100] * 3
    for quantity in ("hit", "margin"):
        expected = list(inspection.mean_interval(rows[quantity]))
        assert curves.loc[(quantity, "random", 50.0)].tolist() == expected
    assert curves.loc[("hit", "first", 50.0), "value"] == pytest.approx(100 * np.mean(place >= 4))
    assert len(curves) == 2 * 4 * (1 + len(inspection.attention.SHARES))


class Frames(Method):
    """Score = mean of the valid frame features; it must never see the image tower again."""

    def video_features(self, frames, mask):
        return VideoFeatures(None, frames, mask)

    def similarity(self, text, video):
        return text.sentence @ (video.frames * video.mask[..., None]).sum(1).T / video.mask.sum(1)


def test_frames_are_removed_as_if_the_clip_were_shorter(monkeypatch):
    monkeypatch.setattr(inspection.attention, "BLOCK", 1)
    features = torch.arange(24, dtype=torch.float32).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
    kept = [np.array([False, True, False, True]), np.array([False, True, False])]
    method = Frames(torch.nn.Module(), None)  # a backbone that can't encode anything
    videos = inspection.encode_videos(method, features, mask)
    torch.testing.assert_close(videos.frames, features)
    texts = TextFeatures(torch.randn(3, 3), torch.zeros(3, 1, 3), *torch.ones(2, 3, 1).bool())
    split = SimpleNamespace(video_of_caption=np.array([1, 0, 1]))
    seen = inspection.EncodedSplit(method, split, None, texts, videos, features, mask)
    whole = seen.scores(texts)
    matched = inspection.matched_scores(method, texts, videos[torch.tensor([1, 0, 1])])
    np.testing.assert_allclose(matched, whole[range(3), [1, 0, 1]], rtol=1e-5)
    found = seen.scores_of_shorter(whole[1:], np.array([1, 2]), kept)
    expected = whole[1:].copy()
    expected[0, 0] = texts.sentence[1] @ features[0, [1, 3]].mean(dim=0)
    expected[1, 1] = texts.sentence[2] @ features[1, 1]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- concepts, frames and patches
#  -----------------------------------------------------------------------------


def test_mean_cosine_is_that_of_all_pairs():
    vectors = np.random.default_rng(0).normal(size=(3, 4, 5))
    for row, found in zip(vectors, inspection.mean_cosine(vectors), strict=True):
        unit = row / np.linalg.norm(row, axis=1, keepdims=True)
        assert found == pytest.approx(
            np.mean([unit[a] @ unit[b] for a in range(4) for b in range(4) if a != b])
        )
    assert inspection.mean_cosine(np.ones((1, 3, 2))) == pytest.approx(1)
    assert inspection.mean_cosine(np.eye(3)[None]) == pytest.approx(0)


def test_object_pixels_are_where_the_objects_are():
    scene = Scene(**FIRST | {"size": "large", "motion": "still", "then": ""})
    near = render(scene, [""], [1])
    (pixels,) = inspection.object_pixels(near)
    rows, columns = np.nonzero(pixels)
    assert 0.06 < pixels.mean() < 0.14  # a circle of about 11.5 pixels radius in 64 x 64
    assert np.ptp(rows) < 27
    assert np.ptp(columns) < 27
    assert columns.mean() < 24  # "left"
    white = render(Scene(**vars(scene) | {"colour": "white"}), [""], [1])
    assert (inspection.object_pixels(white) == pixels[None]).mean() > 0.97


def test_attention_on_pixels_counts_what_of_a_patch_they_cover():
    pixels = np.zeros((2, 4, 4), bool)
    pixels[:, :2, :1] = True  # half of the first of 2 x 2 patches
    attention = np.array([[[1.0, 0], [0, 0]], [[1, 1], [1, 1]]])
    share, area = inspection.attention_on(attention, pixels)
    assert share.tolist() == [50, 12.5]
    assert area.tolist() == [12.5, 12.5]


def test_steps_of_the_partial_order_need_a_strict_fall():
    full, partial, masked = np.array([3.0, 3, 1]), np.array([2.0, 3, 2]), np.array([1.0, 1, 1])
    steps = inspection.partial_order(full, partial, masked)
    assert {name: row.tolist() for name, row in steps.items()} == {
        "full > partial": [True, False, False],
        "partial > masked": [True, True, True],
        "full > masked": [True, True, False],
        "full > partial > masked": [True, False, False],
    }
