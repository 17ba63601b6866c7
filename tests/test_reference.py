"""What the committed reference run has to show, so that a comparison may rest on it."""

import pytest

from tvrkit import files
from tvrkit.evaluation.factors import per_factor_accuracy
from tvrkit.reporting import sweeps
from tvrkit.shapes.scenes import FACTORS
from tvrkit.training import runs
from tvrkit.training.card import CHECKPOINT

CHANCE = 50.0


@pytest.fixture(autouse=True)
def of_the_repository(monkeypatch):
    monkeypatch.delenv("TVRKIT_HOME", raising=False)


def trained():
    """Every trained run of the reference, by its folder below it."""
    root = files.run("reference")
    found = {path.parent for path in root.rglob("run.json")}
    done = {str(folder.relative_to(root)): runs.Run(folder) for folder in found}
    return {name: run for name, run in done.items() if run.card.get("selection") != "zero-shot"}


@pytest.mark.parametrize(("scored", "least"), [(False, 156), (True, 12)])
def test_all_of_it_comes_from_one_commit_one_machine_state_and_one_number_of_threads(scored, least):
    """What was trained; and what was scored on the contrast set, which is younger."""
    runs_of = {
        name: run for name, run in trained().items() if name.startswith("contrast") == scored
    }
    cards = [run.card for run in runs_of.values()]
    assert len(cards) >= least
    for key in ("git_commit", "versions", "torch_threads"):
        assert len({str(card[key]) for card in cards}) == 1, key
    assert not cards[0]["git_commit"].endswith("-dirty")


@pytest.mark.parametrize("name", sweeps.load_all())
def test_every_variant_of_every_sweep_is_there(name):
    """README and the notebooks speak of all of them; about recipes, with all of its seeds."""
    sweep, done = sweeps.load(name), sweeps.finished(name, "reference")
    assert done.keys() == sweep.overrides.keys()
    assert all({*sweep.seeds} <= {*seeds} for seeds in done.values())


def test_pre_training_is_there():
    assert {run.recipe for run in runs.find("reference/pretraining")} == {
        "hmmc_pretrain_shapes",
        "hmmc_pretrain_shapes_zh",
    }


def control(variant):
    accuracy = per_factor_accuracy([*sweeps.finished("time", "reference")[variant].values()])
    return accuracy.set_index("factor")


def test_mean_pooling_cannot_tell_a_video_from_the_same_played_backwards():
    row = control("meanP").loc["direction"]
    assert row.low < CHANCE + 2, "frames are not quite the same from both ends"


def test_a_temporal_transformer_whose_positions_are_seen_can():
    """The positive control that every comparison of temporal parts rests on."""
    row, pooled = control("seqTransf-normal").loc["direction"], control("meanP").loc["direction"]
    assert row.low > CHANCE + 5
    assert row.low > pooled.high


def test_motion_is_told_well_above_chance():
    row = control("seqTransf-normal").loc["motion"]
    assert row.low > CHANCE + 15


def test_the_contrast_set_was_scored_with_the_weights_of_the_reference():
    made = {f"{run.recipe}/seed{run.seed}": run for run in runs.find("reference")}
    scored = runs.find("reference/contrast")
    assert len(scored) == 12
    for run in scored:
        weights = made[f"{run.recipe}/seed{run.seed}"].card["artefacts"][CHECKPOINT]
        assert run.card["weights"]["sha256"] == weights, run.folder
        assert run.card["data"]["made_from"]["preset"] == "contrast"


@pytest.mark.parametrize(
    "recipe", ["clip4clip_shapes", "dmae_shapes", "hmmc_shapes", "glscl_shapes"]
)
def test_each_factor_has_an_interval_of_less_than_five_points_to_either_side(recipe):
    seeds = [run for run in runs.find("reference/contrast") if run.recipe == recipe]
    table = per_factor_accuracy(seeds).set_index("factor")
    assert {*table.index} == {*FACTORS, "order", "direction"}
    half = (table.high - table.low) / 2
    assert half.max() < 5, half.round(1).to_dict()
