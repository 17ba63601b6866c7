"""From annotations and videos to a prepared data set: one invented, one real, and notebook 01 on
the real one."""

import json
import pickle
import shutil
from pathlib import Path

import lmdb
import nbformat
import numpy as np
import pytest
import simplejpeg
import torch
from jupyter_client import KernelManager
from nbclient import NotebookClient

from tests.data.video_files import indices, write_audio, write_video
from tvrkit.data.batch import TextFeatures, VideoFeatures
from tvrkit.data.loader import video_loader
from tvrkit.data.manifest import Manifest, coverage
from tvrkit.data.prepare import adopt_store, prepare
from tvrkit.evaluation.evaluate import evaluate
from tvrkit.models.backbone import create_backbone
from tvrkit.models.method import Method
from tvrkit.recipes import load_recipe

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_data_preparation.ipynb"
CLIPS = ["video7500", "video9770", "video9771"]  # of MSR-VTT's 1k-A test split

# MSVD's layout: <id>_<start>_<end>, every caption a query. The test clip f is cut from a training
# clip's video.
CAPTIONS = {
    "-a_b_1_2": [["a", "dog"], ["it", "runs"]],
    "c_3_4": [["a", "cat"]],
    "d_5_6": [["a", "cow"], ["a", "cow"]],
    "e_7_8": [["a", "horse"]],
    "-a_b_3_4": [["a", "cow"], ["a", "man", "eats"]],
    "gone_1_2": [["a", "bird"]],
}
LISTS = {
    "train": ["-a_b_1_2"],
    "val": ["c_3_4"],
    "test": ["d_5_6", "e_7_8", "-a_b_3_4", "gone_1_2"],
}


class BagOfPixels(Method):
    """Scores by mean colour: what is measured means nothing, and is the same each time."""

    def encode_text(self, batch):
        words = torch.stack([batch.tokens % 7, batch.tokens % 11, batch.tokens % 13], -1).float()
        return TextFeatures(words.mean(1), words, batch.token_mask, batch.token_mask.long())

    def encode_video(self, batch):
        colours = batch.frames.float().mean((-2, -1))
        return VideoFeatures(colours.mean(1), colours, batch.frame_mask)

    def similarity(self, text, video):
        return torch.cosine_similarity(text.sentence[:, None], video.video[None], dim=-1)


@pytest.fixture(scope="module")
def invented(tmp_path_factory):
    """Annotations and videos; of the test videos one is broken, one is missing and one is short."""
    root = tmp_path_factory.mktemp("raw")
    (root / "annotations").mkdir()
    (root / "annotations" / "raw-captions.pkl").write_bytes(pickle.dumps(CAPTIONS))
    for split, ids in LISTS.items():
        (root / "annotations" / f"{split}_list.txt").write_text("\n".join(ids) + "\n")
    (root / "videos" / "deep").mkdir(parents=True)
    for video_id, count in {"-a_b_1_2": 12, "c_3_4": 12, "d_5_6": 12, "-a_b_3_4": 3}.items():
        write_video(root / "videos" / "deep" / f"{video_id}.mp4", count=count)
    write_audio(root / "videos" / "e_7_8.mp4")
    return root


def prepare_invented(raw, out, **options):
    return prepare(
        "msvd",
        raw / "annotations",
        raw / "videos",
        out,
        allow_partial=True,
        frames=4,
        workers=1,
        **options,
    )


@pytest.fixture(scope="module")
def prepared(invented, tmp_path_factory):
    return prepare_invented(invented, tmp_path_factory.mktemp("data") / "msvd")


def test_the_card_says_what_the_check_found(prepared):
    made, report = prepared
    card = made.card
    assert card["protocol"] == "msvd"
    assert card["partial"]
    assert "test: expected 670 videos, found 4" in card["mismatches"]
    assert card["repeated_captions"] == {"train": 0, "val": 0, "test": 2}  # "a cow" three times
    assert card["shared_sources"] == 1
    assert report.shared_sources == ["-a_b_3_4"]
    assert card["counts"]["test"] == {"videos": 4, "ok": 2, "captions": 6}
    assert Manifest.open(made.root).card == card


def test_every_video_has_a_row_and_a_reason(prepared):
    made, _ = prepared
    rows = coverage(made.videos).set_index("split")
    assert rows.loc["test", ["videos", "present"]].tolist() == [4, 2]
    assert rows.loc["test", ["missing", "broken", "too_short"]].tolist() == [
        ["gone_1_2"],
        ["e_7_8"],
        ["-a_b_3_4"],
    ]
    assert rows["present"].to_dict() == {"train": 1, "val": 1, "test": 2}
    assert (made.videos.loc[made.videos["status"] != "ok", "reason"] != "").all()
    assert made.frames.count("d_5_6") == 4
    assert made.frames.count("-a_b_3_4") == 3


def test_captions_keep_to_their_videos(prepared):
    split = prepared[0].split("test")
    texts = split.captions["caption"].groupby(split.video_of_caption).agg(list)
    found = {split.video_ids[row]: captions for row, captions in texts.items()}
    assert found == {"d_5_6": ["a cow", "a cow"], "-a_b_3_4": ["a cow", "a man eats"]}
    assert sorted(split.missing) == ["e_7_8", "gone_1_2"]


def test_some_splits_need_only_their_files(invented, tmp_path):
    shutil.copytree(invented / "annotations", tmp_path / "annotations")
    (tmp_path / "annotations" / "train_list.txt").unlink()
    shutil.copytree(invented / "videos", tmp_path / "videos")
    with pytest.raises(FileNotFoundError, match=r"train_list\.txt"):
        prepare_invented(tmp_path, tmp_path / "whole")
    made, _ = prepare_invented(tmp_path, tmp_path / "some", splits=["val", "test"])
    assert set(made.card["counts"]) == {"val", "test"}
    assert made.card["shared_sources"] is None
    with pytest.raises(ValueError, match="unknown split 'validation'"):
        prepare_invented(tmp_path, tmp_path / "other", splits=["validation"])


def test_a_mismatch_stops_before_any_video_is_read(invented, tmp_path):
    with pytest.raises(ValueError, match="test: expected 670 videos, found 4"):
        prepare("msvd", invented / "annotations", invented / "videos", tmp_path / "msvd")
    assert not (tmp_path / "msvd").exists()


def test_didemo_keeps_frames_of_the_seconds_that_are_annotated(tmp_path):
    """CLIP4Clip's and GLSCL's loaders read from 0 to 31: of a minute, half the frames are later."""
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", count=60, times=list(range(0, 60_000, 1000)))
    for split in ("train", "val", "test"):
        names = ["a.mp4"] if split == "test" else []
        (tmp_path / f"{split}_list.txt").write_text("".join(f"{name}\n" for name in names))
        lines = [{"video": name, "description": "a ball rolls"} for name in names]
        (tmp_path / f"{split}_data.json").write_text(json.dumps(lines))
    made, _ = prepare(
        "didemo",
        tmp_path,
        tmp_path / "videos",
        tmp_path / "out",
        splits=["test"],
        allow_partial=True,
        workers=1,
    )
    assert made.card["store"]["window"] == [0, 31]
    assert indices(made.frames.read(made.videos["video_id"][0], range(31))) == list(range(31))
    assert made.videos[["frames", "requested", "duration"]].values.tolist() == [[31, 64, 60.0]]


@pytest.fixture
def msrvtt(realdata, tmp_path):
    """The real 1k-A test list with three of its thousand clips, prepared under tmp_path as a
    TVRKIT_HOME."""
    annotations, out = realdata / "annotations" / "msrvtt", tmp_path / "data" / "msrvtt"
    return prepare(
        "msrvtt/1k-A", annotations, realdata / "videos", out, splits=["test"], allow_partial=True
    )[0]


def recipe_settings(made):
    """Overrides of a recipe for the embedded data set that make it read another."""
    return [f"data.prepared={made.root.name}", "eval.batch_size=2", "eval.bootstrap=20"]


def test_three_real_clips_of_a_thousand(msrvtt):
    assert msrvtt.card["counts"] == {"test": {"videos": 1000, "ok": 3, "captions": 1000}}
    assert not msrvtt.card[
        "partial"
    ]  # the list is the protocol's: it is the videos that are missing
    assert msrvtt.card["mismatches"] == []
    assert msrvtt.card["repeated_captions"] == {"test": 5}
    assert msrvtt.card["shared_sources"] is None
    (row,) = coverage(msrvtt.videos).to_dict("records")
    assert (row["videos"], row["present"], len(row["missing"])) == (1000, 3, 997)
    assert row["broken"] == row["damaged"] == row["too_short"] == []
    assert set(CLIPS).isdisjoint(row["missing"])
    assert {video: msrvtt.frames.count(video) for video in CLIPS} == dict.fromkeys(CLIPS, 30)
    assert msrvtt.frames.verify() == []

    config = load_recipe("clip4clip_shapes", recipe_settings(msrvtt))
    backbone = create_backbone(config.backbone)
    split = msrvtt.split("test")
    batch = next(iter(video_loader(split, config, backbone)))
    assert batch.frames.shape == (2, 8, 3, backbone.image_size, backbone.image_size)
    assert batch.frames.float().std() > 10  # pictures, not blanks
    assert batch.frame_mask.all()

    result = evaluate(BagOfPixels(backbone, None), split, config)
    assert sorted(result.video_ids) == CLIPS
    assert (result.metrics["t2v queries"], result.metrics["v2t queries"]) == (3, 3)
    assert not result.metrics["complete"]
    assert result.metrics["missing"] == row["missing"]


@pytest.fixture(scope="module")
def kernel():
    """One for all notebooks: what takes the time is importing torch."""
    manager = KernelManager()
    manager.start_kernel()
    yield manager
    manager.shutdown_kernel(now=True)


def run_notebook(made, home, kernel):
    """What notebook 01 prints on a data set under a TVRKIT_HOME, and its warnings."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += f"\noverrides, run = {recipe_settings(made)!r}, 'other'"
    cell.source += f"\nimport os; os.environ['TVRKIT_HOME'] = {str(home)!r}"
    NotebookClient(notebook, km=kernel, timeout=60).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = {
        name: [out["text"] for out in outputs if out.get("name") == name]
        for name in ("stdout", "stderr")
    }
    return "".join(texts["stdout"]), "".join(texts["stderr"])


def test_notebook_on_real_clips(msrvtt, tmp_path, kernel):
    said, errors = run_notebook(msrvtt, tmp_path, kernel)
    said = " ".join(said.split())  # notes are wrapped
    assert errors == ""
    assert "NOT COMPARABLE with published results: 997 of 1000 test videos have no frames" in said
    assert "missing 997: video" in said
    assert "share a source video with training: not known" in said
    assert "ceiling" not in said
    figures = {path.stem for path in (tmp_path / "reports" / "other" / "figures").glob("*.png")}
    assert {"01_film_strips", "01_caption_lengths", "01_sampling", "01_content_words"} <= figures


def test_notebook_on_an_incomplete_invented_set(prepared, tmp_path, kernel):
    shutil.copytree(prepared[0].root, tmp_path / "data" / "msvd")
    said, errors = run_notebook(prepared[0], tmp_path, kernel)
    assert errors == ""
    assert "test: expected 670 videos, found 4" in said
    assert "broken 1: e_7_8" in said
    assert "share a source video with training: 1" in said


def test_a_store_of_other_making_is_adopted_as_it_is(invented, tmp_path):
    """HMMC's layout: `<id>_<i>` -> JPEG, nothing else; no video file is needed."""
    ids = [video_id for split in LISTS.values() for video_id in split]
    store = tmp_path / "theirs.lmdb"
    with (
        lmdb.open(str(store), map_size=1 << 24) as environment,
        environment.begin(write=True) as transaction,
    ):
        for number, video_id in enumerate(ids[1:]):
            for index in range(30):
                image = np.full((32, 48, 3), 7 * number + index, np.uint8)
                transaction.put(f"{video_id}_{index}".encode(), simplejpeg.encode_jpeg(image))
    made, _ = prepare(
        "msvd", invented / "annotations", store, tmp_path / "msvd", allow_partial=True
    )
    rows = made.videos.set_index("video_id")
    assert rows.loc[ids[0], "status"] == "failed"
    assert set(rows.loc[ids[1:], "frames"]) == {30}
    assert made.frames.path.resolve() == store
    assert made.frames.read(ids[1], [29]).mean() == pytest.approx(29, abs=2)
    with pytest.raises(ValueError, match="expected frames of"):
        adopt_store(store, tmp_path / "none", ["nobody"])
    (tmp_path / "other.lmdb").mkdir()
    with pytest.raises(ValueError, match="got another store: choose another folder"):
        adopt_store(tmp_path / "other.lmdb", tmp_path / "msvd", ids)
