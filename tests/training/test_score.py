"""One's own text and file get the score that the run's own evaluation gave them."""

import numpy as np
import pytest

import tvrkit
from tvrkit import cli, files
from tvrkit.data.decoders import DecodeError
from tvrkit.training import given_weights, runs

pytestmark = pytest.mark.slow
SMALL = ["eval.bootstrap=20", "train.epochs=1"]


@pytest.fixture(scope="module")
def run(smoke_home):
    return runs.ensure("dmae_shapes", profile="smoke", overrides=SMALL, run="mine")


def clip(run, column):
    return run.manifest.root / "videos" / f"{run.split.video_ids[column]}.mp4"


def test_scores_are_those_of_the_evaluation_but_for_jpeg(run):
    captions, columns = run.split.captions["caption"].tolist()[:4], (0, 5, 9)
    found = tvrkit.score(captions, [clip(run, column) for column in columns], run)
    expected = run.evaluation.similarity[:4][:, columns]
    np.testing.assert_allclose(found.similarity, expected, atol=0.03)
    assert abs(found.similarity - expected).mean() < 0.01
    assert found.maps["word_frame"].shape[:2] == (4, 3)
    length = run.config.data.max_words
    assert found.maps["word_weight"].shape == (4, 3, length)
    weighed = found.maps["word_weight"][0, 0] > 0
    assert len(found.words[0]) == length
    assert set(np.flatnonzero([bool(word) for word in found.words[0]])) <= set(
        np.flatnonzero(weighed)
    )
    assert "".join(found.words[0]) == captions[0].lower().replace(" ", "")
    given = tvrkit.save_pretrained(run, files.home() / "given")
    again = tvrkit.score(captions[0], clip(run, 0), given)
    np.testing.assert_allclose(again.similarity[0], found.similarity[0, :1], atol=1e-6)
    assert found.frames[0].shape[-1] == 3


def test_one_text_and_one_file_by_the_command(run, monkeypatch, capsys):
    name = "mine/dmae_shapes/seed0"
    command = ["score", "a red circle", str(clip(run, 0)), "--run", name]
    monkeypatch.setattr("sys.argv", ["tvrkit", *command])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    out = capsys.readouterr().out
    whole = tvrkit.score("a red circle", clip(run, 0), name)
    assert f"{whole.similarity[0, 0]:.3f}" in out
    assert "word_weight" in out
    assert "circle" in out
    sizes = " x ".join(map(str, whole.maps["word_frame"].shape[2:]))
    assert f"word_frame: {sizes}, see `tvrkit.score`" in out


def test_what_is_not_there_is_said(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.mp4: no such video file"):
        tvrkit.score("a", tmp_path / "none.mp4", run)
    with pytest.raises(FileNotFoundError, match="expected RUN/RECIPE/seedK of a finished run"):
        tvrkit.score("a", clip(run, 0), "mine/dmae_shapes/seed7")
    with pytest.raises(ValueError, match="texts: expected words, got ' '"):
        tvrkit.score(["a", " "], clip(run, 0), run)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(DecodeError, match=r"broken.mp4"):
        tvrkit.score("a", tmp_path / "broken.mp4", run)


def test_the_package_gives_its_verbs_when_asked():
    assert (tvrkit.evaluate, tvrkit.embed) == (given_weights.evaluate, given_weights.embed)
    with pytest.raises(AttributeError, match="tvrkit has no 'search_all'"):
        _ = tvrkit.search_all
