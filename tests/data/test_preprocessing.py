"""Frames are resized and cut as the weights' own transform does, to one level of 255."""

from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from tvrkit.data.preprocessing import Preprocessing

SHORT_SIDE = Preprocessing(48, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("shape", [(48, 48), (48, 80), (96, 64), (20, 31)])
def test_frames_are_resized_and_cropped_only_where_they_differ(shape):
    from torchvision.transforms import InterpolationMode, v2

    clip = torch.randint(256, (2, 3, *shape), dtype=torch.uint8)
    fitted = SHORT_SIDE.fit(clip)
    assert (fitted.shape, fitted.dtype) == ((2, 3, 48, 48), torch.uint8)
    if shape == (48, 48):
        assert torch.equal(fitted, clip)
        assert fitted.data_ptr() == clip.data_ptr(), "nothing is copied"
    elif shape[0] == 48:
        assert torch.equal(fitted, clip[..., 16:64])
    else:
        scale = 48 / min(shape)
        size = [round(side * scale) if side != min(shape) else 48 for side in shape]
        resized = v2.functional.resize(
            clip, [size[0], int(shape[1] * scale)], InterpolationMode.BICUBIC
        )
        assert torch.equal(fitted, v2.functional.center_crop(resized, [48, 48]))


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(256, 341), (341, 256), (180, 320), (500, 281), (224, 400)])
def test_frames_are_those_of_open_clips_inference_transform(resize, interpolation, shape):
    facts = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": interpolation}
    facts["resize_mode"] = resize
    rng = np.random.default_rng(0)
    coarse = rng.integers(256, size=(shape[0] // 8 + 1, shape[1] // 8 + 1, 3), dtype=np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))[: shape[0], : shape[1]]
    picture = picture // 2 + rng.integers(128, size=picture.shape, dtype=np.uint8)
    transform = image_transform_v2(PreprocessCfg(size=224, **facts), is_train=False)
    expected = 255 * transform(Image.fromarray(picture))
    frames = torch.from_numpy(picture).permute(2, 0, 1)[None]
    fitted = Preprocessing.from_facts(224, facts).fit(frames)[0].float()
    off = (fitted - expected).abs()
    if min(shape) < 224:  # enlarged: both passes round
        assert ((off > 1.001).float().mean(), off.max()) <= (1e-4, 2.001)
    else:
        assert off.max() <= 1.001


def test_every_tag_of_open_clip_has_facts_that_are_known():
    tags = open_clip.list_pretrained()
    found = {
        Preprocessing.from_facts(224, open_clip.get_pretrained_cfg(*tag)).resize for tag in tags
    }
    assert found == {"shortest", "squash"}
    facts = open_clip.get_pretrained_cfg("PE-Core-B-16", "meta")
    assert Preprocessing.from_facts(224, facts) == Preprocessing(
        224, (0.5,) * 3, (0.5,) * 3, "bilinear", "squash"
    )


def test_what_is_not_known_is_refused_by_name():
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    for key, value, message in (
        ("resize_mode", "longest", "file: .*resize: Input should be 'shortest' or 'squash', got"),
        ("interpolation", "nearest", "interpolation: .*'bicubic' or 'bilinear', got 'nearest'"),
        ("mean", 0.5, "mean: Input should be a valid tuple, got 0.5"),
        ("mean", [0.5] * 4, "mean: Tuple should have at most 3 items"),
        ("std", [0, 1, 1], "std.0: Input should be greater than 0, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Preprocessing.from_facts(48, half | {key: value}, "file: preprocess_cfg")
    with pytest.raises(ValueError, match="resize"):
        Preprocessing(48, (0.5,) * 3, (0.5,) * 3, resize="longest")


@pytest.mark.parametrize(
    ("shape", "settings", "notes"),
    [
        ((64, 80), {"short_side": 64}, []),
        ((32, 80), {"short_side": 32}, ["stored frames of 32 pixels are enlarged to 48"]),
        ((64, 64), {"short_side": 64}, []),
        ((64, 64), {}, ["the store, of other making, has square frames"]),
        ((64, 80), {}, []),
    ],
)
def test_a_store_of_another_preprocessing_is_noticed(shape, settings, notes):
    frames = SimpleNamespace(settings=settings, read=lambda *_: np.zeros((1, *shape, 3), np.uint8))
    card = SHORT_SIDE.card(SimpleNamespace(frames=frames, video_ids=["a", "b"]))
    assert card["resize"] == "shortest"
    assert len(card["notes"]) == len(notes)
    assert all(note.startswith(start) for note, start in zip(card["notes"], notes, strict=True))
