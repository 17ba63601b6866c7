"""Settings are read strictly: a wrong name or type is one clear line."""

import dataclasses

import pytest

from tvrkit.settings import TrainConfig, choose, parse


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


def test_an_unknown_name_gets_the_nearest_and_no_endless_list():
    videos = {f"test{number:05d}" for number in range(2700)}
    with pytest.raises(
        ValueError, match=r"unknown video .*test00039 and 2,660 more; near it: test00017"
    ) as caught:
        choose("video", "tst00017", videos)
    assert len(str(caught.value)) < 600
    with pytest.raises(ValueError, match=r"one of a, b$"):
        choose("letter", "xyz", ["b", "a"])
