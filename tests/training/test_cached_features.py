"""Heads over cached features: the same numbers as over frames and captions, in training and
evaluation."""

import json
import shutil

import numpy as np
import pytest

from tvrkit import files
from tvrkit.training import runs
from tvrkit.training.given_weights import embed, evaluate

pytestmark = pytest.mark.slow

SMALL = ["eval.bootstrap=20", "train.epochs=1"]
FROZEN = [*SMALL, "train.freeze_backbone=true", "data.keyword_masking=false"]
METHODS = ("clip4clip_shapes", "dmae_shapes", "glscl_shapes", "hmmc_shapes")


@pytest.fixture(scope="module")
def folder(smoke_home):
    """Features of the embedded backbone on the smoke set, in a home of their own."""
    embed("clip4clip_shapes", smoke_home / "features", profile="smoke", overrides=SMALL)
    return smoke_home / "features"


@pytest.mark.parametrize("recipe", METHODS)
def test_a_head_trains_to_the_same_numbers_with_and_without_the_cache(folder, recipe):
    plain = runs.ensure(recipe, profile="smoke", overrides=FROZEN, run="plain")
    cache = [*FROZEN, f"data.features={folder}"]
    cached = runs.ensure(recipe, profile="smoke", overrides=cache, run="cached")
    first = [run.history["loss"][0] for run in (plain, cached)]
    np.testing.assert_allclose(*first, rtol=1e-5)
    # AdamW divides by what is small: the rounding of another batch grows over the steps
    np.testing.assert_allclose(cached.history["loss"], plain.history["loss"], rtol=2e-3)
    scores = [run.evaluation.similarity for run in (plain, cached)]
    np.testing.assert_allclose(*scores, atol=2e-3)
    for run in (plain, cached):  # only new parts and the scale have moved
        begun, ended = runs.build_method(run.config), run.method()
        towers = [
            (key, old, ended.state_dict()[key])
            for key, old in begun.state_dict().items()
            if key.startswith(("backbone.clip.text.", "backbone.clip.visual."))
        ]
        assert towers
        assert all((old == new).all() for _, old, new in towers)
    again = evaluate(
        recipe,
        cached.folder / "checkpoint.safetensors",
        features=folder,
        profile="smoke",
        overrides=SMALL,
        run="again",
    )
    np.testing.assert_allclose(again.evaluation.similarity, scores[1], atol=1e-6)


def test_zero_shot_from_features_is_zero_shot_from_frames(folder):
    given = {"profile": "smoke", "overrides": SMALL}
    plain = evaluate("clip4clip_meanp_shapes", run="frames", **given)
    cached = evaluate("clip4clip_meanp_shapes", features=folder, run="features", **given)
    scores = [run.evaluation.similarity for run in (plain, cached)]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert cached.config.data.features == str(folder)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.max_words=20"], "expected max_words 20, got 32"),
        (["backbone.pretrained=null"], "expected weights"),
        (["data.features=nowhere"], "features nowhere: the folder is not there"),
        (
            ["train.freeze_backbone=false"],
            "expected frozen towers.*: change .*train.freeze_backbone=false",
        ),
        (["data.keyword_masking=true"], r"as they are: change \['data.keyword_masking'\]"),
    ],
)
def test_features_that_are_not_the_recipes_own_are_refused(folder, overrides, message):
    wrong = [*FROZEN, f"data.features={folder}", *overrides]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        runs.ensure("clip4clip_shapes", profile="smoke", overrides=wrong, run="refused")


@pytest.mark.parametrize("kind", ["videos", "texts"])
def test_features_that_are_cut_off_are_refused_before_there_is_a_run(kind, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    shard = other / f"test-{kind}-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"test-{kind}.*: expected row .*: make them again"):
        evaluate(
            "clip4clip_meanp_shapes", features=other, profile="smoke", overrides=SMALL, run="cut"
        )
    assert not files.run("cut").exists()


def test_features_of_other_data_are_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    card = json.loads((other / "card.json").read_text())
    card["splits"]["test"] = "0" * 12
    (other / "card.json").write_text(json.dumps(card))
    given = {"features": other, "profile": "smoke", "overrides": SMALL, "run": "other"}
    with pytest.raises(ValueError, match=r"expected split test .*, got 000000000000: make them"):
        evaluate("clip4clip_meanp_shapes", **given)
    for shard in other.glob("test-*"):  # of fewer videos, too
        shard.unlink()
    with pytest.raises(ValueError, match=r"expected split test .*, got 000000000000: make them"):
        evaluate("clip4clip_meanp_shapes", **given)
    (other / "card.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"other/card.json: expected a JSON object, got \[1\]"):
        evaluate("clip4clip_meanp_shapes", **given)


def test_released_glscl_reads_padded_words_which_features_do_not_hold(folder):
    with pytest.raises(ValueError, match="expected tokens: it reads padded words, got features"):
        evaluate(
            "glscl_shapes",
            features=folder,
            profile="smoke",
            overrides=[*SMALL, "method.fidelity=released"],
            run="released",
        )
