"""The evaluation: one pass over each side, what is recorded, what is written, tables and
verdicts."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tvrkit import files
from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.data.manifest import Split
from tvrkit.evaluation import evaluate as evaluation
from tvrkit.evaluation import ranks as metrics
from tvrkit.evaluation.evaluate import (
    Evaluation,
    agreement,
    compare,
    evaluate,
    pairwise,
    per_factor_accuracy,
)
from tvrkit.models.method import Method
from tvrkit.settings import EvalConfig
from tvrkit.shapes.scenes import Truth

VIDEOS, PER_VIDEO = 13, 3
FIRST_ID = {"test": 0, "train": 1000}
SETTINGS = EvalConfig(batch_size=4, bootstrap=100)


def make_split(name, videos, missing):
    owner = np.random.default_rng(0).permutation(np.repeat(np.arange(videos), PER_VIDEO))
    captions = pd.DataFrame({"caption_id": [f"{name}-c{row}" for row in range(len(owner))]})
    return Split(name, captions, [f"{name}-v{row}" for row in range(videos)], owner, missing)


class FakeManifest:
    """Splits without files."""

    root = "data/fake"
    card: dict = {}  # noqa: RUF012  replaced, never changed

    def __init__(self, videos=VIDEOS, missing=()):
        self.splits = {
            "test": make_split("test", videos, list(missing)),
            "train": make_split("train", 21, []),
        }

    def split(self, name, language):
        assert language == "en"
        return self.splits[name]


class FakeMethod(Method):
    """A video's feature is a random vector of its number; a caption's is its video's and noise of
    its own."""

    def __init__(self, noise=1.0):
        super().__init__(torch.nn.Dropout(), None)
        self.noise, self.texts, self.videos = noise, [], []

    def encode_text(self, batch):
        assert not torch.is_grad_enabled()
        captions, videos = batch.tokens.T.tolist()
        self.texts += captions
        sentence = self.vectors(videos) + self.noise * self.vectors(
            [10_000 + row for row in captions]
        )
        return TextFeatures(sentence, sentence[:, None], batch.token_mask, batch.token_mask.long())

    def encode_video(self, batch):
        numbers = batch.frames[:, 0].tolist()
        self.videos += numbers
        video = self.vectors(numbers)
        return VideoFeatures(video, video[:, None], batch.frame_mask)

    def vectors(self, numbers):
        return torch.tensor(
            np.stack([np.random.default_rng(number).normal(size=8) for number in numbers])
        ).float()

    def similarity(self, text, video):
        assert not self.training
        return torch.cosine_similarity(text.sentence[:, None], video.video[None], dim=-1)


def text_loader(split, config, backbone, manifest):
    torch.rand(1)  # loaders draw the seed of their workers from the global generator
    first = FIRST_ID[split.name]
    rows = np.array([int(caption.split("-c")[1]) for caption in split.captions["caption_id"]])
    tokens = torch.tensor(np.stack([first + rows, first + split.video_of_caption], 1))
    for part in tokens.split(config.eval.batch_size):
        yield TextVideoBatch(tokens=part, token_mask=torch.ones(part.shape, dtype=torch.bool))


def video_loader(split, config, backbone, manifest):
    torch.rand(1)
    frames = FIRST_ID[split.name] + torch.arange(len(split.video_ids))[:, None]
    for part in frames.split(config.eval.batch_size):
        yield TextVideoBatch(frames=part, frame_mask=torch.ones(part.shape, dtype=torch.bool))


@pytest.fixture(autouse=True)
def loaders(monkeypatch):
    monkeypatch.setattr(evaluation, "text_loader", text_loader)
    monkeypatch.setattr(evaluation, "video_loader", video_loader)


def make_config(select="last", **changes):
    data, train = SimpleNamespace(language="en"), SimpleNamespace(select=select)
    return SimpleNamespace(data=data, train=train, eval=replace(SETTINGS, **changes))


def arrays(ranks_of_own, seed=0):
    """An `Evaluation` of one caption a video in which caption i has the rank `ranks_of_own[i]`."""
    rng, count = np.random.default_rng(seed), len(ranks_of_own)
    scores = np.zeros((count, count), np.float32)
    for row, rank in enumerate(ranks_of_own):
        others = rng.permutation(np.delete(np.arange(count), row))
        scores[row, np.insert(others, rank - 1, row)] = np.linspace(1, 0, count)
    ids = [f"c{row}" for row in range(count)], [f"v{row}" for row in range(count)]
    labels = {"split": "test", "selection": "last", "complete": True}
    return Evaluation.of(scores, *ids, np.arange(count), SETTINGS, **labels)


def test_every_caption_and_video_is_coded_once_and_scored_against_all():
    method, manifest = FakeMethod(), FakeManifest()
    found = evaluate(method, manifest, make_config())
    captions, owner = list(range(VIDEOS * PER_VIDEO)), manifest.splits["test"].video_of_caption
    assert (method.texts, method.videos) == (captions, list(range(VIDEOS)))
    text = method.vectors(owner) + method.vectors([10_000 + row for row in captions])
    expected = torch.cosine_similarity(
        text[:, None], method.vectors(range(VIDEOS))[None], dim=-1
    ).numpy()
    np.testing.assert_allclose(found.similarity, expected, atol=1e-6)
    assert found.similarity.dtype == np.float32
    assert found.ranks["t2v"].tolist() == metrics.retrieval_ranks(expected, owner).tolist()
    assert found.ranks["v2t"].tolist() == metrics.max_over_captions(expected.T, owner).tolist()
    assert found.caption_ids[5] == "test-c5"
    assert found.video_ids[found.video_of_caption[5]] == f"test-v{owner[5]}"


def test_batch_size_changes_nothing():
    sizes = [
        evaluate(FakeMethod(), FakeManifest(), make_config(batch_size=size)) for size in (1, 5, 100)
    ]
    assert sizes[0].metrics == sizes[1].metrics == sizes[2].metrics
    assert np.array_equal(sizes[0].similarity, sizes[2].similarity)


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_random_state_are_left_alone(training):
    method = FakeMethod().train(training)
    before = torch.get_rng_state()
    evaluate(method, FakeManifest(), make_config())
    assert torch.equal(torch.get_rng_state(), before)
    assert (method.training, method.backbone.training) == (training, training)
    method.noise = float("nan")
    with pytest.raises(ValueError, match="query 0 holds NaN"):
        evaluate(method, FakeManifest(), make_config())
    assert method.training is training


def test_what_is_recorded():
    found = evaluate(
        FakeMethod(), FakeManifest(), make_config(ties="mean", postprocess=["dsl"])
    ).metrics
    assert found["queries"] == {"t2v": 39, "v2t": 13}
    labels = {"split": "test", "language": "en", "videos": 13, "ties": "mean", "selection": "last"}
    labels |= {"complete": True, "missing": []}
    assert {key: found[key] for key in labels} == labels
    names = ["R@1", "R@5", "R@10", "R@50", "MdR", "MnR"]
    for columns in (found, found["postprocess"]["dsl"]):
        for way in ("t2v", "v2t"):
            assert list(columns[way]) == list(columns["interval"][way]) == names
            bounds = columns["bounds"][way]
            assert list(bounds) == ["optimistic", "pessimistic"]
            for name in names[:4]:
                low, high = columns["interval"][way][name]
                assert 0 <= low <= columns[way][name] <= high <= 100
                assert (
                    columns["bounds"][way]["pessimistic"][name]
                    <= columns["bounds"][way]["optimistic"][name]
                )
        total = sum(columns[way][name] for way in ("t2v", "v2t") for name in ("R@1", "R@5", "R@10"))
        assert columns["rsum"] == pytest.approx(total)
        assert columns["interval"]["rsum"][0] <= total <= columns["interval"]["rsum"][1]
    assert found["v2t_convention"] == "max over captions"
    assert found["v2t_first_hit"]["MnR"] >= found["v2t"]["MnR"]
    assert json.loads(json.dumps(found)) == found


def test_bounds_lie_apart_where_scores_tie():
    found = Evaluation.of(
        np.zeros((4, 4)), list("abcd"), list("wxyz"), np.arange(4), SETTINGS
    ).metrics
    assert found["t2v"]["R@1"] == found["bounds"]["t2v"]["pessimistic"]["R@1"] == 0
    assert found["bounds"]["v2t"]["optimistic"]["R@1"] == 100


def test_selection_on_the_test_split_is_called_optimistic():
    assert (
        evaluate(FakeMethod(), FakeManifest(), make_config("test")).metrics["selection"]
        == "test (optimistic)"
    )


def test_a_set_prepared_with_other_counts_than_its_protocol_is_labelled():
    manifest = FakeManifest()
    assert evaluate(FakeMethod(), manifest, make_config()).metrics["complete"]
    manifest.card = {"partial": True}
    assert not evaluate(FakeMethod(), manifest, make_config()).metrics["complete"]


def test_missing_videos_are_listed_and_an_empty_split_is_refused():
    found = evaluate(
        FakeMethod(), FakeManifest(missing=["gone-1", "gone-2"]), make_config()
    ).metrics
    assert (found["complete"], found["missing"], found["videos"]) == (
        False,
        ["gone-1", "gone-2"],
        VIDEOS,
    )
    with pytest.raises(
        ValueError, match="split 'test' of data/fake: none of its 2 videos has frames"
    ):
        evaluate(FakeMethod(), FakeManifest(videos=0, missing=["gone-1", "gone-2"]), make_config())


def test_post_processing_stands_beside_the_raw_numbers():
    method, manifest = FakeMethod(), FakeManifest()
    raw = evaluate(FakeMethod(), manifest, make_config())
    both = evaluate(method, manifest, make_config(postprocess=["dsl", "qbnorm"]))
    assert raw.metrics["postprocess"] == {}
    assert list(both.metrics["postprocess"]) == ["dsl", "qbnorm"]
    assert {**both.metrics, "postprocess": {}} == raw.metrics
    np.testing.assert_array_equal(both.similarity, raw.similarity)
    owner = raw.video_of_caption
    dsl = metrics.retrieval_metrics(
        metrics.retrieval_ranks(metrics.dual_softmax(raw.similarity), owner)
    )
    assert both.metrics["postprocess"]["dsl"]["t2v"] == dsl
    # the bank: one caption of each training video, and the training videos; test videos are coded
    # once
    assert sorted(method.videos) == [*range(VIDEOS), *range(1000, 1021)]
    train = manifest.splits["train"]
    first = [int(np.flatnonzero(train.video_of_caption == video)[0]) for video in range(21)]
    assert method.texts[39:] == [1000 + row for row in first]
    text = method.vectors(range(1000, 1021)) + method.vectors([11_000 + row for row in first])
    bank = torch.cosine_similarity(text[:, None], method.vectors(range(VIDEOS))[None], dim=-1)
    expected = metrics.retrieval_metrics(
        metrics.retrieval_ranks(metrics.qb_norm(raw.similarity, bank), owner)
    )
    assert both.metrics["postprocess"]["qbnorm"]["t2v"] == expected
    text = method.vectors(owner) + method.vectors([10_000 + row for row in range(39)])
    bank = torch.cosine_similarity(method.vectors(range(1000, 1021))[:, None], text[None], dim=-1)
    expected = metrics.max_over_captions(metrics.qb_norm(raw.similarity.T, bank), owner)
    assert both.metrics["postprocess"]["qbnorm"]["v2t"] == metrics.retrieval_metrics(expected)
    with pytest.raises(ValueError, match="'qbnorm' needs a bank"):
        Evaluation.of(np.eye(2), ["a", "b"], ["x", "y"], [0, 1], EvalConfig(postprocess=["qbnorm"]))


def test_saved_and_loaded(tmp_path):
    written = evaluate(FakeMethod(), FakeManifest(), make_config(ties="mean"))
    written.save(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "metrics.json",
        "ranks.npz",
        "similarity.npz",
    ]
    read = Evaluation.load(tmp_path / "run")
    assert read.metrics == written.metrics
    for key in ("similarity", "caption_ids", "video_ids", "video_of_caption"):
        np.testing.assert_array_equal(getattr(read, key), getattr(written, key))
    for way in ("t2v", "v2t"):
        np.testing.assert_array_equal(read.ranks[way], written.ranks[way])


def test_an_interrupted_save_does_not_pass_as_whole(tmp_path, monkeypatch):
    evaluate(FakeMethod(), FakeManifest(), make_config()).save(tmp_path)
    monkeypatch.setattr(files, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate(FakeMethod(noise=2.0), FakeManifest(), make_config()).save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no finished evaluation: no metrics\.json"):
        Evaluation.load(tmp_path)


def test_files_of_different_evaluations_are_refused(tmp_path):
    arrays([1, 2, 3]).save(tmp_path / "small")
    arrays([1, 2, 3, 4]).save(tmp_path / "large")
    (tmp_path / "small" / "ranks.npz").replace(tmp_path / "large" / "ranks.npz")
    with pytest.raises(ValueError, match="files of different evaluations"):
        Evaluation.load(tmp_path / "large")


def test_table():
    perfect, poor = arrays([1] * 40), arrays([40] * 40)
    table = compare({"perfect": perfect, "poor": poor})
    assert table[["method", "direction"]].to_numpy().tolist() == [
        ["perfect", "t2v"],
        ["perfect", "v2t"],
        ["poor", "t2v"],
        ["poor", "v2t"],
    ]
    first = table.iloc[0]
    assert first["R@1"] == "100.0 [100.0, 100.0]"
    assert first["MdR"] == "1.0 [1.0, 1.0]"
    assert table.iloc[2]["R@10"] == "0.0 [0.0, 0.0]"
    assert first["rsum"].startswith(f"{perfect.metrics['rsum']:.1f} [")
    assert (table["queries"] == 40).all()
    assert list(table.columns[-4:]) == ["split", "selection", "ties", "complete"]


def test_table_has_a_column_of_its_own_for_each_post_processing():
    table = compare({"a": evaluate(FakeMethod(), FakeManifest(), make_config(postprocess=["dsl"]))})
    assert {"R@1", "dsl R@1", "dsl rsum"} <= set(table.columns)


def test_only_results_on_the_same_queries_are_compared():
    five, tied = arrays([1, 2, 3, 4, 5]), arrays([1, 2, 3, 4, 5])
    with pytest.raises(
        ValueError, match="a and b are not of the same queries: 5 and 4 caption_ids"
    ):
        compare({"a": five, "b": arrays([1, 2, 3, 4])})
    renamed = replace(tied, video_ids=tied.video_ids[::-1])
    with pytest.raises(ValueError, match="not of the same queries: 5 and 5 video_ids"):
        pairwise({"a": five, "b": renamed})
    tied.metrics["ties"] = "optimistic"
    with pytest.raises(ValueError, match="count ties differently: pessimistic and optimistic"):
        compare({"a": five, "b": tied})
    with pytest.raises(ValueError, match="one evaluation or more"):
        compare({})
    with pytest.raises(ValueError, match="two evaluations or more, got 1"):
        pairwise({"a": five})


def test_seeds_are_pooled_video_by_video():
    rng = np.random.default_rng(0)
    a, b = ([arrays(rng.integers(1, 4, 12), seed) for seed in range(3)] for _ in range(2))
    table = pairwise({"a": a, "b": b}).set_index("direction")
    for way in ("t2v", "v2t"):
        gain = np.array(
            [
                (x.ranks[way] == 1).astype(int) - (y.ranks[way] == 1)
                for x, y in zip(a, b, strict=True)
            ]
        )
        row = table.loc[way]
        assert row["difference"] == pytest.approx(100 * gain.mean())
        assert row["effect"] == pytest.approx(gain.sum() / 3)
        assert (row["queries"], row["seeds"]) == (12, 3)
    once, thrice = (
        pairwise({"a": a[:1] * n, "b": b[:1] * n}) for n in (1, 3)
    )  # copies tell nothing new
    pd.testing.assert_frame_equal(
        once[["difference", "low", "high", "verdict"]],
        thrice[["difference", "low", "high", "verdict"]],
    )
    with pytest.raises(
        ValueError, match=r"equally many seeds of each method, got \{'a': 3, 'b': 2\}"
    ):
        pairwise({"a": a, "b": b[:2]})


def test_agreement_is_counted_query_by_query():
    runs = {"a": arrays([1, 1, 2, 4]), "b": arrays([1, 3, 4, 1], 1)}
    assert agreement(runs).loc["a", "b"] == 50
    assert (np.diag(agreement(runs)) == 100).all()
    assert agreement(runs, k=3).loc["b", "a"] == 50


def test_verdicts_between_runs():
    rng = np.random.default_rng(1)
    base = np.where(np.arange(500) < 225, 1, rng.integers(2, 60, 500))
    point, ten = base.copy(), base.copy()
    point[[*range(10), *range(225, 240)]] = [2] * 10 + [1] * 15
    ten[[*range(20), *range(225, 295)]] = [2] * 20 + [1] * 70
    table = pairwise(
        {"base": arrays(base), "one point": arrays(point, 1), "ten points": arrays(ten, 2)}
    )
    table = table[table["direction"] == "t2v"].set_index(["a", "b"])
    assert table.loc[("base", "one point"), ["verdict", "effect"]].tolist() == ["can't tell", -5]
    assert table.loc[("base", "ten points"), ["verdict", "effect"]].tolist() == ["worse", -50]
    assert table.loc[("one point", "ten points"), "verdict"] == "worse"
    assert (table["p_holm"] >= table["p_value"]).all()
    assert (table["low"] <= table["difference"]).all()
    assert (table["difference"] <= table["high"]).all()
    assert (table["queries"] == 500).all()


def test_captions_of_a_video_are_compared_together():
    a, b = (evaluate(FakeMethod(noise), FakeManifest(), make_config()) for noise in (0.5, 3.0))
    table = pairwise({"a": a, "b": b}).set_index("direction")
    assert table.loc["t2v", "queries"] == 39
    assert (
        table.loc["t2v", "p_value"] > table.loc["t2v", "p_mcnemar"]
    )  # 13 independent pairs, not 39


def make_truth(families):
    """Scenes w, x (another colour), y (motions in the other order), z (something else), and gone
    (as x, no frames)."""
    names = (
        "shape",
        "colour",
        "size",
        "place",
        "motion",
        "background",
        "then",
        "shape2",
        "colour2",
        "motion2",
    )
    scene = dict(
        zip(
            names, ("star", "red", "small", "left", "right", "plain", "up", "", "", ""), strict=True
        )
    )
    changes = {
        "w": {},
        "x": {"colour": "blue"},
        "y": {"motion": "up", "then": "right"},
        "z": {"shape": "ring"},
    }
    changes |= {"gone": {"colour": "white"}}
    videos = [
        {"video_id": video, "family": family, "scene": scene | change}
        for (video, change), family in zip(changes.items(), families, strict=True)
    ]
    said = {
        "a": "colour",
        "b": "motion then",
        "c": "motion",
        "d": "colour shape",
        "e": "then motion",
        "f": "colour",
    }
    captions = [
        {"caption_id": caption, "mentioned": factors.split()} for caption, factors in said.items()
    ]
    return Truth(pd.DataFrame(videos), pd.DataFrame(captions))


def test_accuracy_per_swapped_factor():
    scores = np.array(
        [
            [0.9, 0.1, 0.9, 0.0],  # a (w) says the colour: right against x; not asked about y
            [0.5, 0.9, 0.4, 0.0],  # b (w) says both motions: right against y
            [0.1, 0.0, 0.9, 0.0],  # c (w) says one motion only: not asked
            [0.6, 0.5, 0.0, 0.0],  # d (x) says the colour: wrong against w
            [0.9, 0.0, 0.9, 0.0],  # e (y) says both motions: a tie with w is wrong
            [0.0, 0.0, 0.0, 1.0],  # f (z) has no rival
        ]
    )
    found = Evaluation.of(scores, list("abcdef"), list("wxyz"), [0, 0, 0, 1, 2, 3], SETTINGS)
    table = per_factor_accuracy(found, make_truth([0, 0, 0, 3, 0]))
    expected = [["colour", 50.0, 2, 2, 1], ["order", 50.0, 2, 2, 1]]
    assert (
        table[["factor", "accuracy", "pairs", "captions", "families"]].to_numpy().tolist()
        == expected
    )
    assert table[["low", "high"]].isna().all(axis=None)  # one family has no spread


def test_accuracy_per_factor_has_an_interval_over_families():
    families = [[name, f"{name}'"] for name in "abcdefgh"]
    scores = np.zeros((16, 16))
    right = [0, 1, 2, 4, 6, 8, 9, 10, 12]
    scores[right, right] = 1
    ids = [video for family in families for video in family]
    truth = SimpleNamespace(
        captions=pd.DataFrame({"mentioned": [["shape"]] * 16}, index=ids),
        videos=pd.DataFrame({"family": [video[0] for video in ids]}, index=ids),
        swapped=lambda video: {
            "shape": [other for other in ids if other[0] == video[0] and other != video]
        },
    )
    row = per_factor_accuracy(Evaluation.of(scores, ids, ids, np.arange(16), SETTINGS), truth).iloc[
        0
    ]
    assert (row["accuracy"], row["families"]) == (pytest.approx(100 * 9 / 16), 8)
    assert 30 < row["low"] < row["accuracy"] < row["high"] < 80
    one, none = (
        Evaluation.of(matrix, ids, ids, np.arange(16), SETTINGS)
        for matrix in (scores, np.zeros((16, 16)))
    )
    both = per_factor_accuracy([one, none], truth).iloc[0]
    assert (both["accuracy"], both["pairs"]) == (pytest.approx(100 * 9 / 32), 16)
    copies = per_factor_accuracy([one, one, one], truth).iloc[0]
    pd.testing.assert_series_equal(copies, row)  # families are resampled, with all seeds


def test_accuracy_without_any_pair_is_an_empty_table():
    alone = Evaluation.of([[1.0]], ["f"], ["z"], [0], SETTINGS)
    table = per_factor_accuracy(alone, make_truth([0, 0, 0, 3, 0]))
    assert len(table) == 0
    assert "accuracy" in table
