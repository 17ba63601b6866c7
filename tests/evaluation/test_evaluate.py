"""The evaluation: one pass over each side, what is recorded, what is written."""

import json
import mmap
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tests import fakes
from tests.evaluation.whole import dual_softmax, max_over_captions, qb_norm
from tvrkit import files
from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.evaluation import compare
from tvrkit.evaluation import evaluate as evaluation
from tvrkit.evaluation import ranks as metrics
from tvrkit.evaluation.evaluate import Evaluation, read_arrays
from tvrkit.losses.miners import margin_excess
from tvrkit.models.method import Method
from tvrkit.settings import EvalConfig

VIDEOS, PER_VIDEO = 13, 3
FIRST_ID = {"test": 0, "train": 1000}
SETTINGS = EvalConfig(batch_size=4, bootstrap=100)


def make_split(name, videos, missing):
    owner = np.random.default_rng(0).permutation(np.repeat(np.arange(videos), PER_VIDEO))
    captions = pd.DataFrame({"caption_id": [f"{name}-c{row}" for row in range(len(owner))]})
    ids = [f"{name}-v{row}" for row in range(videos)]
    return fakes.split(name, captions, ids, owner, missing=missing)


class FakeManifest:
    """Splits without files."""

    def __init__(self, videos=VIDEOS, missing=()):
        self.splits = {
            "test": make_split("test", videos, list(missing)),
            "train": make_split("train", 21, []),
        }


def evaluate(method, manifest, config):
    test, train = manifest.splits["test"], manifest.splits["train"]
    return evaluation.evaluate(method, test, config, bank=train)


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


def text_loader(split, config, backbone, tagged):
    torch.rand(1)  # loaders draw the seed of their workers from the global generator
    first = FIRST_ID[split.name]
    rows = np.array([int(caption.split("-c")[1]) for caption in split.captions["caption_id"]])
    tokens = torch.tensor(np.stack([first + rows, first + split.video_of_caption], 1))
    return [
        TextVideoBatch(tokens=part, token_mask=torch.ones(part.shape, dtype=torch.bool))
        for part in tokens.split(config.eval.batch_size)
    ]


def video_loader(split, config, backbone):
    torch.rand(1)
    frames = FIRST_ID[split.name] + torch.arange(len(split.video_ids))[:, None]
    return [
        TextVideoBatch(frames=part, frame_mask=torch.ones(part.shape, dtype=torch.bool))
        for part in frames.split(config.eval.batch_size)
    ]


@pytest.fixture(autouse=True)
def loaders(monkeypatch):
    monkeypatch.setattr(evaluation, "text_loader", text_loader)
    monkeypatch.setattr(evaluation, "video_loader", video_loader)


def make_config(select="last", precision="fp32", **changes):
    data = SimpleNamespace(language="en")
    train = SimpleNamespace(select=select, epochs=1, precision=precision)
    return SimpleNamespace(data=data, train=train, eval=replace(SETTINGS, **changes))


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
    assert found.ranks["v2t"].tolist() == max_over_captions(expected, owner).tolist()
    assert found.caption_ids[5] == "test-c5"
    assert found.video_ids[found.video_of_caption[5]] == f"test-v{owner[5]}"


def test_batch_size_changes_nothing():
    sizes = [
        evaluate(FakeMethod(), FakeManifest(), make_config(batch_size=size)) for size in (1, 5, 100)
    ]
    assert sizes[0].metrics == sizes[1].metrics == sizes[2].metrics
    assert np.array_equal(sizes[0].similarity, sizes[2].similarity)


def test_encoders_on_a_gpu_run_in_the_recipes_precision_and_scores_in_float32(monkeypatch):
    """The GPU is faked: nothing is moved, and the precision is that of a CPU's bf16."""

    class Watched(FakeMethod):
        def vectors(self, numbers):
            return super().vectors(numbers) @ torch.eye(8)

        def similarity(self, text, video):
            seen.append((text.sentence @ video.video.T).dtype)
            return super().similarity(text, video)

    monkeypatch.setattr(VideoFeatures, "to", lambda self, device: self)
    monkeypatch.setattr(TextVideoBatch, "to", lambda self, device: self)
    real = evaluation.precision
    monkeypatch.setattr(evaluation, "precision", lambda train, device: real(train, "cpu"))
    seen, found, test = [], {}, FakeManifest().splits["test"]
    for device in ("cpu", "cuda"):
        config = make_config(precision="bf16")
        found[device] = evaluation.evaluate(Watched(), test, config, device=device).similarity
    assert set(seen) == {torch.float32}
    assert found["cuda"].dtype == np.float32
    assert 1e-5 < np.abs(found["cuda"] - found["cpu"]).max() < 2e-2


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
    assert (found["t2v queries"], found["v2t queries"]) == (39, 13)
    labels = {"split": "test", "language": "en", "videos": 13, "ties": "mean", "selection": "last"}
    labels |= {"complete": True, "missing": []}
    assert {key: found[key] for key in labels} == labels
    recalls = [f"{way} R@{k}" for way in ("t2v", "v2t") for k in (1, 5, 10)]
    names = [f"{way} {name}" for way in ("t2v", "v2t") for name in compare.METRICS]
    for prefix in ("", "dsl "):
        for name in [*names, "rsum"]:
            name = prefix + name
            assert 0 <= found[f"{name} low"] <= found[name] <= found[f"{name} high"]
            bounds = found[f"{name} optimistic"], found[f"{name} pessimistic"]
            assert bounds[0] <= bounds[1] if "M" in name else bounds[0] >= bounds[1]
        assert found[f"{prefix}rsum"] == pytest.approx(
            sum(found[prefix + name] for name in recalls)
        )
    assert found["v2t_convention"] == "max over captions"
    assert found["first hit v2t MnR"] >= found["v2t MnR"]
    assert {type(value) for value in found.values()} <= {str, bool, int, float, list}  # flat
    assert json.loads(json.dumps(found)) == found


def test_bounds_lie_apart_where_scores_tie():
    found = Evaluation.from_similarity(
        np.zeros((4, 4)), (list("abcd"), list("wxyz"), np.arange(4)), SETTINGS
    ).metrics
    assert found["t2v R@1"] == found["t2v R@1 pessimistic"] == 0
    assert found["v2t R@1 optimistic"] == 100


def test_selection_on_the_test_split_is_called_optimistic():
    assert (
        evaluate(FakeMethod(), FakeManifest(), make_config("test")).metrics["selection"]
        == "test (optimistic)"
    )


def test_missing_videos_are_listed():
    metrics = evaluate(
        FakeMethod(), FakeManifest(missing=["gone-1", "gone-2"]), make_config()
    ).metrics
    assert (metrics["complete"], metrics["missing"], metrics["videos"]) == (
        False,
        ["gone-1", "gone-2"],
        VIDEOS,
    )


def test_a_post_processing_without_its_bank_is_refused():
    split = FakeManifest().splits["test"]
    with pytest.raises(ValueError, match=r"qbnorm.*expected bank=, the training split"):
        evaluation.evaluate(FakeMethod(), split, make_config(postprocess=["qbnorm"]))


def test_post_processing_stands_beside_the_raw_numbers():
    method, manifest = FakeMethod(), FakeManifest()
    raw = evaluate(FakeMethod(), manifest, make_config())
    both = evaluate(method, manifest, make_config(postprocess=["dsl", "qbnorm"]))
    processed = {name.split()[0] for name in set(both.metrics) - set(raw.metrics)}
    assert processed == {"dsl", "qbnorm"}
    assert {name: both.metrics[name] for name in raw.metrics} == raw.metrics
    np.testing.assert_array_equal(both.similarity, raw.similarity)
    owner = raw.video_of_caption
    dsl = metrics.retrieval_metrics(metrics.retrieval_ranks(dual_softmax(raw.similarity), owner))
    assert {name: both.metrics[f"dsl t2v {name}"] for name in dsl} == dsl
    # the bank: one caption of each training video, and the training videos; test videos are coded
    # once
    assert sorted(method.videos) == [*range(VIDEOS), *range(1000, 1021)]
    train = manifest.splits["train"]
    first = [int(np.flatnonzero(train.video_of_caption == video)[0]) for video in range(21)]
    assert method.texts[39:] == [1000 + row for row in first]
    text = method.vectors(range(1000, 1021)) + method.vectors([11_000 + row for row in first])
    bank = torch.cosine_similarity(text[:, None], method.vectors(range(VIDEOS))[None], dim=-1)
    expected = metrics.retrieval_metrics(
        metrics.retrieval_ranks(qb_norm(raw.similarity, bank), owner)
    )
    assert {name: both.metrics[f"qbnorm t2v {name}"] for name in expected} == expected
    text = method.vectors(owner) + method.vectors([10_000 + row for row in range(39)])
    bank = torch.cosine_similarity(method.vectors(range(1000, 1021))[:, None], text[None], dim=-1)
    ranks = max_over_captions(qb_norm(raw.similarity.T, bank).T, owner)
    expected = metrics.retrieval_metrics(ranks)
    assert {name: both.metrics[f"qbnorm v2t {name}"] for name in expected} == expected
    with pytest.raises(ValueError, match="'qbnorm' needs a bank"):
        Evaluation.from_similarity(
            np.eye(2), (["a", "b"], ["x", "y"], [0, 1]), EvalConfig(postprocess=["qbnorm"])
        )


def saved(folder):
    return read_arrays(folder / "ranks.npz") | read_arrays(folder / "similarity.npz")


def test_saved_and_read(tmp_path):
    written = evaluate(FakeMethod(), FakeManifest(), make_config(ties="mean"))
    written.save(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "factors.csv.gz",
        "metrics.json",
        "ranks.npz",
        "similarity.npz",
    ]
    assert files.read_json(tmp_path / "run" / "metrics.json") == written.metrics
    read = saved(tmp_path / "run")
    for key in ("similarity", "caption_ids", "video_ids", "video_of_caption"):
        np.testing.assert_array_equal(read[key], getattr(written, key))
    for way in ("t2v", "v2t"):
        np.testing.assert_array_equal(read[way], written.ranks[way])


def large(folder, captions=600, videos=300, **changes):
    """An evaluation of a matrix in a file, and the matrix."""
    rng = np.random.default_rng(0)
    owner = rng.permutation(np.arange(captions) % videos)
    scores = rng.normal(scale=0.1, size=(captions, videos)).astype(np.float32)
    scores[np.arange(captions), owner] += 0.2
    np.save(folder / "scores.npy", scores)
    ids = [f"c{row}" for row in range(captions)], [f"v{row}" for row in range(videos)], owner
    settings = EvalConfig(bootstrap=20, **changes)
    given = np.load(folder / "scores.npy", mmap_mode="r")
    return lambda: Evaluation.from_similarity(given, ids, settings), scores


def test_mined_pairs_are_those_of_the_miner(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 1000)
    make, scores = large(tmp_path)
    found = make()
    match = found.video_of_caption[:, None] == np.arange(scores.shape[1])
    excess = margin_excess(torch.from_numpy(scores), torch.from_numpy(match)).numpy()
    table = found.mined()
    assert len(table) > 1000
    rows, columns = np.nonzero(excess > 0)
    assert table["row"].tolist() == rows.tolist()
    assert table["column"].tolist() == columns.tolist()
    assert table["excess"].tolist() == excess[rows, columns].astype(float).tolist()


def test_the_matrix_is_never_held(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 2**13)
    make, scores = large(tmp_path, 1500, 750, postprocess=["dsl"])
    tracemalloc.start()
    found = make()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < scores.nbytes / 4
    found.save(tmp_path)
    np.testing.assert_array_equal(saved(tmp_path)["similarity"], scores)


def test_scores_that_come_in_turn_lie_in_a_file():
    found = evaluate(FakeMethod(), FakeManifest(), make_config())
    assert isinstance(found.similarity.base.base, mmap.mmap)


def test_an_interrupted_save_does_not_pass_as_whole(tmp_path, monkeypatch):
    evaluate(FakeMethod(), FakeManifest(), make_config()).save(tmp_path)
    monkeypatch.setattr(files, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate(FakeMethod(noise=2.0), FakeManifest(), make_config()).save(tmp_path)
    assert not (tmp_path / "metrics.json").exists()
