from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from tests.data.video_files import indices, write_video
from tvrkit.data import extract as frames
from tvrkit.data import loader, processes
from tvrkit.data.batch import TextVideoBatch
from tvrkit.data.decoders import FrameSettings
from tvrkit.data.loader import text_loader, train_loader, video_loader
from tvrkit.data.manifest import Manifest, write
from tvrkit.data.preprocessing import Preprocessing
from tvrkit.data.text import tokenise
from tvrkit.settings import DataConfig, EvalConfig, TrainConfig

SHORT_SIDE = Preprocessing(48, (0.5,) * 3, (0.5,) * 3)
LENGTHS = {**{f"train{i}": 6 for i in range(7)}, "train7": 2, "test0": 6, "test1": 6, "test2": 3}
WORDS = ("a red ball rolls over the grass", "the ball", "in the clip we see a ball that rolls")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    files = {
        name: write_video(root / f"{name}.mp4", count=4 * count) for name, count in LENGTHS.items()
    }
    files["train7"] = write_video(root / "train7.mp4", count=2)
    files["test2"] = write_video(root / "test2.mp4", count=3)
    videos = frames.extract(files, root / "frames.lmdb", FrameSettings(6, 48))
    videos["split"] = videos["video_id"].str.rstrip("0123456789")
    captions = [
        {
            "caption_id": f"{name}-{i}",
            "video_id": name,
            "caption": f"{text} {name}",
            "language": "en",
            "split": name.rstrip("0123456789"),
        }
        for name in LENGTHS
        for i, text in enumerate(WORDS)
    ]
    return write(root, pd.DataFrame(captions), videos, {})


@pytest.fixture(scope="module")
def backbone():
    from open_clip import SimpleTokenizer  # it can be imported after tvrkit only

    return SimpleNamespace(preprocessing=SHORT_SIDE, tokenizer=SimpleTokenizer())


def config(workers=0, **data):
    return SimpleNamespace(
        data=DataConfig(prepared="mine", max_frames=4, **data),
        train=TrainConfig(batch_size=3, workers=workers),
        eval=EvalConfig(batch_size=2),
    )


def tensors(batch):
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


def same(batches, others):
    return len(batches) == len(others) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(map(tensors, batches), map(tensors, others), strict=True)
    )


def test_a_training_batch_is_what_it_says(prepared, backbone):
    loader = train_loader(prepared.split("train"), config(captions="all"), backbone, seed=0)
    split = prepared.split("train")
    assert (len(loader), len(loader.dataset)) == (8, 24)
    for batch in loader:
        assert {
            name: (tuple(value.shape), value.dtype) for name, value in tensors(batch).items()
        } == {
            "tokens": ((3, 32), torch.int64),
            "token_mask": ((3, 32), torch.bool),
            "token_weight": ((3, 32), torch.int64),
            "frames": ((3, 4, 3, 48, 48), torch.uint8),
            "frame_mask": ((3, 4), torch.bool),
            "video_index": ((3,), torch.int64),
            "caption_index": ((3,), torch.int64),
            "seed": ((3,), torch.int64),
        }
        assert batch.video_index.tolist() == split.video_of_caption[batch.caption_index].tolist()
        texts = split.captions["caption"][batch.caption_index.tolist()].tolist()
        assert torch.equal(batch.tokens, tokenise(texts, backbone.tokenizer, 32)[0])
        assert batch.token_weight.unique().tolist() == [0, 1, 2]
        stored = [prepared.frames.count(split.video_ids[row]) for row in batch.video_index]
        assert batch.frame_mask.sum(1).tolist() == [min(4, count) for count in stored]
        assert not batch.frames[~batch.frame_mask].any()


def test_one_caption_per_video_and_epoch_is_drawn_anew(prepared, backbone):
    loader = train_loader(prepared.split("train"), config(), backbone, seed=0)
    drawn = []
    for epoch in range(12):
        loader.dataset.set_epoch(epoch)
        batches = list(loader)
        videos = torch.cat([batch.video_index for batch in batches]).tolist()
        assert len(videos) == len(set(videos)) == 6  # the last batch would not be full
        drawn += torch.cat([batch.caption_index for batch in batches]).tolist()
    assert set(drawn) == set(range(24))


@pytest.mark.parametrize(
    "data",
    [
        {"augmentation": "randaugment"},
        {"augmentation": "hmmc", "keyword_masking": True, "train_sampling": "random"},
    ],
)
def test_batches_depend_on_seed_epoch_and_item_only(prepared, backbone, data):
    def epoch(number, seed=0, workers=0, before=()):
        loader = train_loader(prepared.split("train"), config(workers, **data), backbone, seed=seed)
        for earlier in before:
            loader.dataset.set_epoch(earlier)
            list(loader)
        loader.dataset.set_epoch(number)
        return list(loader)

    torch.manual_seed(1)
    reference, state = epoch(1), torch.random.get_rng_state()
    torch.manual_seed(2)
    assert same(reference, epoch(1, workers=2, before=[0]))  # workers that live on learn the epoch
    assert same(reference, epoch(1, before=[0, 3]))
    assert not same(reference, epoch(2))
    assert not same(reference, epoch(1, seed=1))
    torch.manual_seed(1)
    epoch(3)
    assert torch.equal(
        state, torch.random.get_rng_state()
    )  # the augmentation leaves the global generator alone


@pytest.mark.parametrize("language", ["en", "zh"])
def test_tags_are_a_second_text(prepared, backbone, language):
    captions = prepared.captions.assign(language=language, tags="")
    captions.loc[captions["video_id"] == "train3", "tags"] = (
        "球 草地" if language == "zh" else "ball grass"
    )
    tagged = Manifest(prepared.root, captions, prepared.videos, prepared.card)
    loader = train_loader(
        tagged.split("train", language),
        config(captions="tagged", language=language),
        backbone,
        seed=0,
    )
    split = tagged.split("train", language)
    assert len(loader.dataset) == 8  # one caption a video
    for batch in loader:
        rows = split.captions.iloc[batch.caption_index.tolist()]
        expected = [
            row.tags if row.video_id == "train3" else row.caption for row in rows.itertuples()
        ]
        tokens, mask, _ = tokenise(expected, backbone.tokenizer, 32)
        assert torch.equal(batch.extras["tag_tokens"], tokens)
        assert torch.equal(batch.extras["tag_mask"], mask)
        assert torch.equal(batch.tokens, tokenise(rows.caption.tolist(), backbone.tokenizer, 32)[0])


def test_tags_that_are_not_there(prepared, backbone):
    assert (
        next(iter(train_loader(prepared.split("train"), config(), backbone, seed=0))).extras == {}
    )
    with pytest.raises(ValueError, match=r"expected 'one' or 'all', .*got 'tagged'"):
        train_loader(prepared.split("train"), config(captions="tagged"), backbone, seed=0)


def test_keyword_masking_drops_words_and_keeps_the_rest(prepared, backbone):
    loader = train_loader(
        prepared.split("train"), config(captions="all", keyword_masking=True), backbone, seed=0
    )
    split = prepared.split("train")
    shorter = 0
    for batch in loader:
        for tokens, caption in zip(batch.tokens, batch.caption_index.tolist(), strict=True):
            full = tokenise([split.captions["caption"][caption]], backbone.tokenizer, 32)[0][0]
            assert set(tokens.tolist()) <= set(full.tolist())
            shorter += (tokens != full).any().item()
    assert shorter > 0


def test_evaluation_goes_through_a_split_in_order(prepared, backbone):
    split = prepared.split("test")
    for workers in (0, 1):
        batches = list(video_loader(split, config(workers), backbone))
        assert [len(batch) for batch in batches] == [2, 1]
        assert torch.cat([batch.video_index for batch in batches]).tolist() == [0, 1, 2]
        assert all(batch.tokens is None for batch in batches)
        images = batches[0].frames[0].permute(0, 2, 3, 1).numpy()
        assert indices(images) == [2, 10, 14, 22]  # frames 0, 2, 3, 5 of the six stored ones
        assert batches[1].frame_mask.tolist() == [[True, True, True, False]]
    texts = list(text_loader(split, config(), backbone))
    assert [len(batch) for batch in texts] == [2, 2, 2, 2, 1]
    assert torch.cat([batch.caption_index for batch in texts]).tolist() == list(range(9))
    assert torch.cat([batch.video_index for batch in texts]).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(batch.frames is None for batch in texts)


def test_unknown_samplings_and_a_small_set(prepared, backbone):
    with pytest.raises(
        ValueError, match="unknown sampling 'middle': expected one of head, random, "
    ):
        train_loader(prepared.split("train"), config(train_sampling="middle"), backbone, seed=0)
    few = config()
    few.train = TrainConfig(batch_size=100, workers=0)
    assert [
        len(batch) for batch in train_loader(prepared.split("train"), few, backbone, seed=0)
    ] == [8]


def test_a_recipe_runs_with_spawned_workers(prepared, backbone):
    loader = train_loader(prepared.split("train"), config(1), backbone, seed=0)
    loader.multiprocessing_context = "spawn"
    assert same(
        list(loader), list(train_loader(prepared.split("train"), config(), backbone, seed=0))
    )


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_rows_of_all_processes_are_those_of_one(prepared, backbone, monkeypatch, ranks):
    """In order, whatever is drawn; and from the middle of an epoch too."""

    def read(first=0):
        settings = config(captions="all", augmentation="hmmc", train_sampling="random")
        settings.train = TrainConfig(batch_size=6, workers=0)
        loader = train_loader(prepared.split("train"), settings, backbone, seed=0)
        loader.dataset.set_epoch(1)
        loader.batch_sampler.first = first
        assert len(loader) == 4
        return list(loader)

    expected, parts = read(), []
    monkeypatch.setattr(processes, "count", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        parts.append(read())
        assert same(read(first=3), parts[-1][3:])
    joined = [TextVideoBatch.cat(rows) for rows in zip(*parts, strict=True)]
    assert same(joined, expected)


def test_a_batch_that_cannot_be_shared_out_is_refused(prepared, backbone, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(ValueError, match=r"train\.batch_size: expected rows for 2 processes"):
        train_loader(prepared.split("train"), config(), backbone, seed=0)


@pytest.mark.parametrize("ranks", [2, 4])
def test_each_video_and_caption_is_of_one_process(prepared, backbone, monkeypatch, ranks):
    split, seen = prepared.split("test"), {"videos": [], "captions": []}
    monkeypatch.setattr(processes, "count", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        for batch in video_loader(split, config(), backbone):
            seen["videos"] += batch.video_index.tolist()
        for batch in text_loader(split, config(), backbone):
            seen["captions"] += batch.caption_index.tolist()
    assert sorted(seen["videos"]) == list(range(len(split.video_ids)))
    assert sorted(seen["captions"]) == list(range(len(split.captions)))


def test_words_are_told_apart_only_where_they_are_weighed(prepared, backbone, monkeypatch):
    monkeypatch.setattr(loader, "tagger", lambda language: pytest.fail("tagged"))
    for masking in (False, True):
        settings = config(keyword_masking=masking)
        parts = prepared.split("train"), settings, backbone
        for batch in [*train_loader(*parts, seed=0, tagged=False), *text_loader(*parts, False)]:
            assert torch.equal(batch.token_weight, batch.token_mask.long())
