"""Recipes are read strictly, and every packaged one is readable."""

import dataclasses

import pytest

from tvrkit import settings as config


@pytest.mark.parametrize("recipe", config.recipe_names())
def test_every_packaged_recipe_builds_and_survives_the_round_trip(recipe):
    built = config.load_recipe(recipe)
    assert config.build(config.to_dict(built), recipe) == built


@pytest.mark.parametrize("profile", ["smoke", "quick", "reference", "full"])
def test_every_profile_names_recipes_that_exist(profile):
    loaded = config.load_profile(profile)
    for recipe in [*loaded.recipes, *loaded.inspect]:
        assert config.load_recipe(recipe, profile=profile).recipe == recipe
    assert set(loaded.inspect) <= set(loaded.recipes)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=1e-4", r"train\.lr: .*got '1e-4' \(YAML reads 1e-4 as text: write 1\.0e-4\)"),
        ("train.epoch=3", r"train\.epoch: .*known keys: epochs, batch_size"),
        ("train.epochs=2.5", r"train\.epochs: .*valid integer"),
        ("train.batch_size=0", r"train\.batch_size: .*greater than 0"),
        ("train.optimizer=sgd", r"train\.optimizer: .*'adamw' or 'bertadam'"),
        (
            "trainer.epochs=3",
            r"unknown section 'trainer': expected one of backbone, data, eval, method, train",
        ),
        ("method.name=xclip", r"unknown method 'xclip': expected one of .*clip4clip"),
        ("method.hed=meanP", r"method\.hed: "),
        ("eval.postprocess=[softmax]", r"eval\.postprocess\.0: .*'dsl'"),
        ("epochs=3", r"expected section\.key=value"),
        ("train.lr=[", r"override 'train\.lr=\[': expected YAML"),
        ("data.prepared.x=1", r"prepared is a value, not a section"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        config.load_recipe("clip4clip_shapes", [override])
    assert "\n" not in str(caught.value)


def test_unknown_recipe_and_profile_list_the_choices():
    with pytest.raises(
        ValueError, match=r"unknown recipe 'clip4chip_shapes': expected one of .*clip4clip_shapes"
    ):
        config.load_recipe("clip4chip_shapes")
    with pytest.raises(
        ValueError, match="unknown profile 'fast': expected one of full, quick, reference, smoke"
    ):
        config.load_recipe("clip4clip_shapes", profile="fast")


def test_a_profile_with_an_unknown_notebook_lists_the_choices(monkeypatch):
    broken = {"notebooks": ["6_ablations"], "recipes": ["dmae_shapes"], "inspect": [], "seeds": [0]}
    monkeypatch.setattr(config, "_profiles", lambda: {"mine": broken})
    expected = r"profile mine\.notebooks\.0: .*'06_ablations', .*got '6_ablations'"
    with pytest.raises(ValueError, match=expected):
        config.load_profile("mine")


def test_own_overrides_win_over_the_profile():
    smoke = config.load_recipe("clip4clip_shapes", profile="smoke")
    own = config.load_recipe("clip4clip_shapes", ["train.epochs=7"], profile="smoke")
    assert own == dataclasses.replace(smoke, train=dataclasses.replace(smoke.train, epochs=7))


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.load_recipe("clip4clip_shapes").train.epochs = 3


def test_an_unknown_name_is_told_the_nearest_and_no_endless_list():
    videos = {f"test{number:05d}" for number in range(2700)}
    with pytest.raises(
        ValueError, match=r"unknown video .*test00039 and 2,660 more; near it: test00017"
    ) as told:
        config.choose("video", "tst00017", videos)
    assert len(str(told.value)) < 600
    with pytest.raises(ValueError, match=r"one of a, b$"):
        config.choose("letter", "xyz", ["b", "a"])


def test_a_recipe_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"recipe .*none\.yaml: no such file"):
        config.load_recipe(str(tmp_path / "none.yaml"))
