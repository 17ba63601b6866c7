"""A method with its preprocessing: the same features as the evaluation's, queries and refusals."""

import numpy as np
import pytest
import simplejpeg
import torch

from tests.search.conftest import EMBEDDED, jpegs
from tvrkit.search.encoder import PROMPTS, Encoder, global_vector, load_model


def test_a_model_is_a_run_or_a_backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    for model in ((None, None, None), ("a/b/seed0", "tvrkit-tiny", None)):
        with pytest.raises(ValueError, match=r"expected a run .* or a backbone, and not both"):
            load_model(*model)
    with pytest.raises(
        FileNotFoundError, match="mine/dmae_shapes/seed0: no such checkpoint: expected RUN"
    ):
        load_model("mine/dmae_shapes/seed0", None, None)


def test_random_weights_are_the_same_every_time_and_others_are_told_apart(encoder):
    first, second = (Encoder(backbone="tvrkit-tiny").card for _ in range(2))
    assert first == second
    assert first["weights"] != encoder.card["weights"]


def test_videos_are_padded_and_masked(encoder, corpus):
    frames = jpegs(sorted(corpus.iterdir())[0], 5)
    features = encoder.videos([frames, frames[:2]])
    assert features.frames.shape[:2] == (2, encoder.frames)
    assert features.mask.sum(1).tolist() == [5, 2]
    torch.testing.assert_close(features.frames[0, :2], features.frames[1, :2])
    torch.testing.assert_close(global_vector(features).norm(dim=1), torch.ones(2))


def test_a_query_has_the_score_of_the_method(encoder, corpus):
    features = encoder.videos([jpegs(path, 8) for path in sorted(corpus.iterdir())[:3]])
    query = encoder.text_query("a red circle falls")
    expected = query.vector @ global_vector(features).T  # the cosine of CLIP4Clip's meanP
    torch.testing.assert_close(query.score(features), expected)
    assert [query.label[a:b] for _, (a, b) in query.tokens[:3]] == ["a", "red", "circle"]


def test_prompts_average_the_scores_of_their_templates(encoder, corpus):
    features = encoder.videos([jpegs(path, 8) for path in sorted(corpus.iterdir())[:3]])
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
    features = encoder.videos([jpegs(path, encoder.frames) for path in paths])
    query = encoder.video_query(paths[3])
    scores = query.score(features)
    assert scores.argmax() == 3
    assert scores[3] == pytest.approx(1, abs=1e-3)  # the index has its frames as JPEG


def test_a_picture_finds_its_video(encoder, corpus, tmp_path):
    paths = sorted(corpus.iterdir())
    features = encoder.videos([jpegs(path, encoder.frames) for path in paths])
    (tmp_path / "still.jpg").write_bytes(jpegs(paths[5], encoder.frames)[4])
    assert encoder.image_query(tmp_path / "still.jpg").score(features).argmax() == 5


def test_frames_are_fitted_as_for_the_evaluation(encoder):
    wide = np.random.default_rng(0).integers(0, 255, (64, 128, 3)).astype(np.uint8)
    both = [simplejpeg.encode_jpeg(picture, quality=100) for picture in (wide, wide[:, 32:96])]
    features = encoder.videos([[both[0]], [both[1]]])
    assert torch.cosine_similarity(*features.frames[:, 0], dim=0) > 0.98, "the centre is taken"


def test_embedded_model_is_what_the_card_says(encoder):
    assert encoder.model == EMBEDDED
    assert encoder.card["backbone"] == "tvrkit-tiny"
