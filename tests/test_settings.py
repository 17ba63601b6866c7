"""Settings are read strictly: a wrong name or type is one clear line."""

import dataclasses

import pytest

from tvrkit.settings import DataConfig, TrainConfig, choose, parse


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "1e-4"}, r"train\.lr: .*got '1e-4' \(YAML reads 1e-4 as text: write 1\.0e-4\)"),
        ({"epoch": 3}, r"train\.epoch: .*known keys: epochs, batch_size"),
        ({"epochs": 2.5, "batch_size": 0}, r"train\.epochs: .*; train\.batch_size: .*greater"),
    ],
)
def test_wrong_values_name_section_and_key(values, message):
    with pytest.raises(ValueError, match=message):
        parse(TrainConfig, values, "train")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": -1.0}, r"train\.lr: .*greater than or equal to 0, got -1\.0"),
        ({"lr": float("nan")}, r"train\.lr: .*finite number, got nan"),
        ({"clip_lr": float("inf")}, r"train\.clip_lr: .*finite number, got inf"),
        ({"warmup": 5.0}, r"train\.warmup: .*less than or equal to 1, got 5\.0"),
        ({"max_grad_norm": 0.0}, r"train\.max_grad_norm: .*greater than 0, got 0\.0"),
        ({"max_logit_scale": -1.0}, r"train\.max_logit_scale: .*equal to 1, got -1\.0"),
        ({"workers": -1}, r"train\.workers: .*equal to 0, got -1"),
    ],
)
def test_a_value_out_of_its_range_names_key_range_and_value(values, message):
    with pytest.raises(ValueError, match=message):
        parse(TrainConfig, values, "train")


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/x", "a/b", ".hidden", "", "a\n.."])
def test_a_data_set_is_a_folder_of_the_kit_and_no_other(name):
    with pytest.raises(ValueError, match=r"data\.prepared: "):
        parse(DataConfig, {"prepared": name}, "data")


def test_an_error_about_a_large_value_is_short():
    value = [0]
    for _ in range(99):
        value = [value, value]
    with pytest.raises(ValueError, match=r"train\.epochs: ") as caught:
        parse(TrainConfig, {"epochs": value, "workers": "9" * 10**6}, "train")
    assert len(str(caught.value)) < 400


def test_an_unknown_name_gets_the_nearest_and_no_endless_list():
    videos = {f"test{number:05d}" for number in range(2700)}
    with pytest.raises(
        ValueError, match=r"unknown video .*test00039 and 2,660 more; near it: test00017"
    ) as caught:
        choose("video", "tst00017", videos)
    assert len(str(caught.value)) < 600
    with pytest.raises(ValueError, match=r"one of a, b$"):
        choose("letter", "xyz", ["b", "a"])
