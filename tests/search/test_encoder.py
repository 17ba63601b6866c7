"""A method with its preprocessing: the same features as the evaluation's, queries and refusals;
features keep what they are, but for half precision; engines lose nothing."""

import contextlib
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
import torch

from tests.search.conftest import EMBEDDED, jpegs, pictures
from tvrkit.data.features import unpack
from tvrkit.search import encoder as encoders
from tvrkit.search.clips import Reader, find
from tvrkit.search.encoder import PROMPTS, Encoder, global_vector


def test_a_model_is_a_run_or_a_backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    both = [("a/b/seed0", "tvrkit-tiny", None), ("a/b/seed0", None, "tvrkit")]
    for model in ((None, None, None), (None, None, "tvrkit"), *both):
        with pytest.raises(ValueError, match=r"expected a run .* or a backbone, and not both"):
            Encoder(*model)
    with pytest.raises(
        FileNotFoundError, match="mine/dmae_shapes/seed0: no such checkpoint: expected RUN"
    ):
        Encoder("mine/dmae_shapes/seed0")


def test_random_weights_are_the_same_every_time_and_others_are_told_apart(encoder):
    first, second = (Encoder(backbone="tvrkit-tiny").card for _ in range(2))
    assert first == second
    assert first["weights"] != encoder.card["weights"]


def test_videos_are_padded_and_masked(encoder, corpus):
    frames = pictures(sorted(corpus.iterdir())[0], 5)
    features = encoder.videos([frames, frames[:2]])
    assert features.frames.shape[:2] == (2, encoder.frames)
    assert features.mask.sum(1).tolist() == [5, 2]
    torch.testing.assert_close(features.frames[0, :2], features.frames[1, :2])
    torch.testing.assert_close(global_vector(features).norm(dim=1), torch.ones(2))


def test_a_query_has_the_score_of_the_method(encoder, corpus):
    features = encoder.videos([pictures(path, 8) for path in sorted(corpus.iterdir())[:3]])
    query = encoder.text_query("a red circle falls")
    cosine = global_vector(features) @ torch.tensor(query.vector)  # CLIP4Clip's meanP
    torch.testing.assert_close(query.score(features), cosine)
    assert [query.label[a:b] for _, (a, b) in query.tokens[:3]] == ["a", "red", "circle"]


def test_prompts_average_the_scores_of_their_templates(encoder, corpus):
    features = encoder.videos([pictures(path, 8) for path in sorted(corpus.iterdir())[:3]])
    single = [
        encoder.text_query(t.format("a red circle")).score(features) for t in PROMPTS["video"]
    ]
    together = encoder.text_query("a red circle", "video").score(features)
    torch.testing.assert_close(together, torch.stack(single).mean(0))
    with pytest.raises(ValueError, match="unknown prompts"):
        encoder.text_query("a red circle", "poem")


def test_unusable_texts(encoder):
    for text, length in (("", "0"), (" \n", "0"), ("a" * 10_000, "10,000")):
        with pytest.raises(
            ValueError, match=f"expected words of 1 to 1,000 characters, got {length}"
        ):
            encoder.text_query(text)
    assert encoder.text_query("red " * 200).notes == [
        f"the model reads {encoder.max_words - 2} tokens of the query's 200"
    ]
    for known in ("a red circle", "一个红色的圆"):
        assert encoder.text_query(known).notes == []
    (note,) = encoder.text_query("ลูกบอลสีแดง").notes
    assert "does not know this script" in note


def test_a_video_is_its_own_best_match(encoder, corpus):
    paths = sorted(corpus.iterdir())
    features = encoder.videos([pictures(path, encoder.frames) for path in paths])
    query = encoder.file_query(paths[3])
    scores = query.score(features)
    assert scores.argmax() == 3
    assert scores[3] == pytest.approx(1, abs=1e-3)  # the index has its frames as JPEG


def test_a_picture_finds_its_video(encoder, corpus, tmp_path):
    paths = sorted(corpus.iterdir())
    features = encoder.videos([pictures(path, encoder.frames) for path in paths])
    (tmp_path / "still.jpg").write_bytes(jpegs(paths[5], encoder.frames)[4])
    assert encoder.file_query(tmp_path / "still.jpg").score(features).argmax() == 5


def test_frames_are_fitted_as_for_the_evaluation(encoder):
    wide = np.random.default_rng(0).integers(0, 255, (64, 128, 3)).astype(np.uint8)
    features = encoder.videos([[wide], [wide[:, 32:96]]])
    assert torch.cosine_similarity(*features.frames[:, 0], dim=0) > 0.98, "the centre is taken"


def test_embedded_model_is_what_the_card_says(encoder):
    assert encoder.model == EMBEDDED
    assert encoder.card["backbone"] == "tvrkit-tiny"


@pytest.fixture
def read_rows(corpus):
    frames = jpegs(sorted(corpus.iterdir())[0], 8)
    known = {"file": "aa", "path": "/a.mp4", "name": b"/a.mp4", "size": 10, "date": 1_700_000_000}
    known |= {"sha256": "f" * 64, "status": "ok", "reason": ""}
    segments = [
        known | {"segment": 0, "start": 0.0, "end": 1.0, "pictures": frames},
        known | {"segment": 1, "start": 1.0, "end": 2.0, "pictures": frames[:3]},
    ]
    broken = {"segment": 0, "path": "/b.mp4", "status": "failed", "reason": "no frames"}
    return [*segments, known | broken]


def test_a_row_per_segment_and_one_for_a_failure(encoder, read_rows):
    table = encoder.table(read_rows)
    facts = table.select(["path", "segment", "start", "end", "status", "reason"]).to_pylist()
    assert [tuple(row.values()) for row in facts] == [
        ("/a.mp4", 0, 0.0, 1.0, "ok", ""),
        ("/a.mp4", 1, 1.0, 2.0, "ok", ""),
        ("/b.mp4", 0, None, None, "failed", "no frames"),
    ]
    assert table["vector"].null_count == table["features"].null_count == 1
    assert encoder.table(read_rows[2:]).equals(table.slice(2))


def test_a_model_without_numbers_is_named(encoder, read_rows, monkeypatch):
    made = encoder.videos([map(simplejpeg.decode_jpeg, r["pictures"]) for r in read_rows[:2]])
    monkeypatch.setattr(encoder, "videos", lambda _: replace(made, video=made.video * torch.nan))
    with pytest.raises(ValueError, match="the model gives NaN for one of '/a"):
        encoder.table(read_rows)


def test_features_come_back(encoder, read_rows):
    made = encoder.videos([map(simplejpeg.decode_jpeg, r["pictures"]) for r in read_rows[:2]])
    back = unpack(encoder.table(read_rows)["features"].to_pylist()[:2])
    assert torch.equal(back.mask, made.mask)
    torch.testing.assert_close(back.frames, made.frames, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(back.video, made.video, rtol=1e-3, atol=1e-3)


class Seen(list):
    """A progress bar that notes each move."""

    def update(self, files=1):
        self.append(files)


@pytest.mark.parametrize("commit", [1, 5, 100])
def test_local_gives_each_file_once_and_whole(corpus, encoder, commit, monkeypatch):
    monkeypatch.setattr(encoders, "COMMIT", commit)
    found = find(corpus)
    seen = Seen()
    tables = list(encoders.local(found, encoder, 10.0, 2, seen))
    assert seen == [1] * len(found), "the bar moves with each file"
    names = [name for table in tables for name in table["path"].to_pylist()]
    assert names == [row["path"] for row in found]
    assert len(tables) == -(-12 // commit)


def test_workers_of_ray_make_the_rows_of_the_local_engine(corpus, encoder):
    found = find(corpus)[:3]
    read, encode = Reader(encoder.frames, 10.0), Encoder(*EMBEDDED)
    with read.pool:
        made = [read({"row": pickle.dumps(row)})["rows"] for row in found]
    (table,) = encode({"rows": made})["table"]
    assert pickle.loads(table).equals(next(encoders.local(found, encoder, 10.0, 2, Seen())))


def _running(psutil, name: str) -> list:
    """Processes below this one whose command line has the name; one may end while it is asked."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [process] if name in "".join(process.cmdline()) else []
    return found


@pytest.mark.slow
def test_ray_gives_the_same_table_though_a_worker_is_killed(corpus, encoder, monkeypatch):
    for name in ("raylet_start_wait_time_s", "agent_register_timeout_ms"):  # a busy machine
        monkeypatch.setenv(f"RAY_{name}", "300000" if name.endswith("ms") else "300")
    ray = pytest.importorskip("ray", reason="needs the extra `scale`")
    import psutil

    monkeypatch.setattr(encoders, "COMMIT", 2)
    try:
        ray.init(include_dashboard=False, log_to_driver=False)
    except Exception as error:
        pytest.skip(f"Ray does not start on this machine: {error}")
    found, tables, killed, seen = find(corpus), [], [], Seen()
    try:
        for table in encoders.on_ray(found, encoder, 10.0, 1, seen):
            tables.append(table)
            if not killed:
                killed = _running(psutil, "Encoder")[:1]
                killed[0].kill()
    finally:
        ray.shutdown()
    assert killed
    assert sum(seen) == len(found)
    columns = ["file", "segment", "path", "sha256", "vector", "features", "strip"]
    expected = pa.concat_tables(encoders.local(found, encoder, 10.0, 2, Seen())).select(columns)
    made = pa.concat_tables(tables).select(columns)
    assert made.sort_by("path").equals(expected.sort_by("path"))
