"""Recipes of real data sets against the values of the authors' scripts,
data/released_settings.csv: each departure is declared in the recipe, and no other is there."""

import dataclasses
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from tvrkit import files, recipes
from tvrkit.models.backbone import create_backbone
from tvrkit.settings import SECTIONS, BackboneConfig

ROOT = Path(__file__).resolve().parents[2]
TABLE = pd.read_csv(ROOT / "data" / "released_settings.csv", dtype=str, keep_default_na=False)
HELD = [
    name
    for name in recipes.recipe_names()
    if "shapes" not in name and any(fnmatch(name, pattern) for pattern in TABLE.recipes)
]


# towers that open_clip does not have, and weights in float16, which no setting of the kit keeps
OURS_ALONE = ("backbone.name", "train.precision")


def scripts(recipe):
    """{key: (value, source)} of the scripts; of the patterns that fit a recipe, the last counts."""
    rows = [row for row in TABLE.itertuples() if fnmatch(recipe, row.recipes)]
    return {row.key: (yaml.safe_load(row.value), row.source) for row in rows}


def ours(recipe, overrides=()):
    """{key: value} of a recipe, defaults included."""
    raw = recipes.to_dict(recipes.load_recipe(recipe, overrides))
    return {f"{section}.{key}": value for section in raw for key, value in raw[section].items()}


def declared(recipe):
    """The departures that the recipe's file declares."""
    raw = yaml.safe_load((files.RECIPES / f"{recipe}.yaml").read_text("utf-8"))
    return raw.get("departures", {})


@pytest.mark.parametrize("recipe", HELD)
def test_each_departure_from_the_scripts_is_declared_and_each_declared_one_is_there(recipe):
    theirs, own, known = scripts(recipe), ours(recipe), declared(recipe)
    departs = {key: value for key, (value, _) in theirs.items() if own[key] != value}
    assert {key: entry["scripts"] for key, entry in known.items()} == departs
    for key, entry in known.items():
        assert set(entry) == {"scripts", "source", "why"}, key
        assert entry["source"] == theirs[key][1], key
        assert len(entry["why"]) > 10, key


@pytest.mark.parametrize("recipe", HELD)
def test_the_table_speaks_of_every_setting_that_a_recipe_names(recipe):
    """What is not in the scripts at all is named here, with the reason."""
    beside = {
        "data.prepared": "the kit's folder",
        "data.language": "the data set's",
        "backbone.pretrained": "named with the tower",
        "method.name": "the recipe's",
        "method.max_words": "as data.max_words",
        "method.max_frames": "as data.max_frames",
        "train.chunk_size": "does not change the gradient",
        "train.workers": "does not change a batch",
        "train.precision": "HMMC's scripts and DMAE's own leave it to an option, unknown as run",
        "train.start_from": "a folder of the kit",
        "eval.postprocess": "separate columns",
    }
    raw = yaml.safe_load((files.RECIPES / f"{recipe}.yaml").read_text("utf-8"))
    named = {f"{part}.{key}" for part in raw if part != "departures" for key in raw[part]}
    assert named - set(scripts(recipe)) - set(beside) == set()


def test_the_table_is_whole():
    assert list(TABLE.columns) == ["recipes", "key", "value", "source"]
    assert (TABLE != "").all(axis=None)
    assert not TABLE.duplicated(["recipes", "key"]).any()
    known = {f"{part}.{f.name}" for part, cls in SECTIONS.items() for f in dataclasses.fields(cls)}
    assert set(TABLE.key[~TABLE.key.str.startswith("method.")]) <= known
    for pattern in TABLE.recipes.unique():
        assert any(fnmatch(recipe, pattern) for recipe in HELD), pattern


def test_only_what_no_script_trains_is_not_held_against_the_table():
    for recipe in set(recipes.recipe_names()) - set(HELD):
        config = recipes.load_recipe(recipe)
        assert config.data.prepared.startswith("shapes") or config.train.epochs == 0, recipe


@pytest.mark.parametrize("recipe", HELD)
def test_departures_taken_back_make_the_script(recipe):
    """What a recipe declares can be passed to it: all but `OURS_ALONE`."""
    declares = declared(recipe).items()
    known = {key: entry["scripts"] for key, entry in declares if key not in OURS_ALONE}
    back = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in known.items()
    ]
    own = ours(recipe, back)
    theirs = {key: value for key, (value, _) in scripts(recipe).items() if key not in OURS_ALONE}
    assert {key: own[key] for key in theirs} == theirs
    assert "departures" not in recipes.to_dict(recipes.load_recipe(recipe))


def test_steps_of_the_scripts_are_lost_in_float16_matrices():
    """Why `train.precision` is a departure: of CLIP's weights hardly one changes by a step of
    1e-7, nor by the 350 of an epoch of MSR-VTT, for each is rounded by itself."""
    state = create_backbone(BackboneConfig()).clip.state_dict()
    weights = torch.cat([tensor.flatten() for tensor in state.values() if tensor.ndim == 2])
    half, full, step = weights.half(), weights.clone(), 1e-7
    for _ in range(350):
        half, full = half - step, full - step
    assert half.dtype == torch.float16
    assert (half != weights.half()).float().mean() < 0.05
    assert (full != weights).float().mean() > 0.95


ROWS = {
    ("hmmc", "chvtt pre-train"): "hmmc_pretrain_chvtt",
    ("hmmc", "msrvtt fine-tune"): "hmmc_msrvtt",
    ("hmmc", "vatex fine-tune"): "hmmc_vatex_en",
    ("dmae", "msrvtt (paper: TS2-Net code base)"): "dmae_msrvtt_ts2net",
}
COLUMNS = {
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "text_lr": "train.text_lr",
    "weight_decay": "train.weight_decay",
    "warmup": "train.warmup",
    "max_words": "data.max_words",
    "max_frames": "data.max_frames",
}


def test_the_table_agrees_with_the_values_as_they_were_read():
    path = ROOT.parent / "shared" / "released_settings.csv"
    if not path.exists():
        pytest.skip("shared/released_settings.csv is not at hand")
    for row in pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records"):
        source = row["method"], row["dataset"]
        if source == ("dmae", "msrvtt (released framework)"):
            continue  # its cells are sentences
        known = scripts(ROWS.get(source, "_".join(source)))
        read = {key: float(row[name]) for name, key in COLUMNS.items() if row[name]}
        if source == ("hmmc", "chvtt pre-train"):
            del read["data.max_words"]  # an argument of 32 that its loader, with 45, does not use
        assert {key: float(known[key][0]) for key in read} == read, source
        rate = float(row["lr"]) * float(row["clip_lr_factor"])
        assert known["train.clip_lr"][0] == pytest.approx(rate), source


if __name__ == "__main__":  # every departure: python -m tests.recipes.test_released_settings
    for recipe in HELD:
        for key, entry in declared(recipe).items():
            print(
                f"{recipe}: {key} {ours(recipe)[key]}, scripts {entry['scripts']}: {entry['why']}"
            )
