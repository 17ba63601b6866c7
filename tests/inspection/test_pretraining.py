"""The ring of keys counted by hand, the momentum encoder, and words by token."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import fakes
from tvrkit.inspection import pretraining
from tvrkit.models import METHODS
from tvrkit.models.backbone import create_backbone
from tvrkit.settings import BackboneConfig, Config, DataConfig, EvalConfig, TrainConfig
from tvrkit.training import optim

SMALL = {"queue_size": 8, "frame_queue_size": 12, "projector_width": 16, "momentum": 0.5}
WORDS = ["红色的圆", "一个蓝色星形", "绿色圆环", "白色的月亮", "小方块"]
VIDEOS = [f"v{number}" for number in range(5)]


class FakeManifest:
    """Five videos with a caption each, and random frames."""

    def __init__(self):
        self.frames = self
        self.videos = pd.DataFrame({"video_id": VIDEOS, "frames": 6})
        rows = {"caption_id": [f"{name}-0" for name in VIDEOS], "video_id": VIDEOS}
        self.captions = pd.DataFrame({**rows, "caption": WORDS})

    def split(self, name, language):
        return fakes.split(
            name, self.captions, VIDEOS, np.arange(5), language=language, frames=self
        )

    def read(self, video_id, indices):
        rng = np.random.default_rng(VIDEOS.index(video_id))
        return rng.integers(256, size=(6, 64, 64, 3), dtype=np.uint8)[indices]


@pytest.fixture(scope="module")
def run():
    config = Config(
        recipe="small",
        data=DataConfig(prepared="fake", language="zh", max_frames=2),
        backbone=BackboneConfig("tvrkit-tiny", "tvrkit"),
        method=METHODS["hmmc-pretrain"].Settings(**SMALL),
        method_name="hmmc-pretrain",
        train=TrainConfig(epochs=2, batch_size=2),
        eval=EvalConfig(),
    )
    return SimpleNamespace(config=config, manifest=FakeManifest(), seed=0)


@given(st.integers(0, 60), st.integers(1, 12))
def test_the_queue_is_a_ring(pushed, size):
    ring = np.full(size, -1)
    for number in range(pushed):
        ring[number % size] = number
    np.testing.assert_array_equal(pretraining.key_numbers(pushed, size), ring)


def test_training_steps_fill_the_queue_in_order_and_move_the_slow_encoder(run):
    method = create_method(run).train()
    data, order = pretraining.training_batches(run, method)
    optimizer, _ = optim.build_optimizer(method, run.config.train, len(order))
    name = "resblocks.0.attn.in_proj_weight"
    weights, keys = [method.temporal.get_parameter(name).detach().clone()], []
    for step, items in enumerate(order, 1):
        batch = data.__getitems__(items)
        method.before_step()
        video = method.encode_video(batch)
        optimizer.zero_grad()
        method.loss(method.encode_text(batch), video, batch)["loss"].backward()
        optimizer.step()
        weights.append(method.temporal.get_parameter(name).detach().clone())
        keys += torch.nn.functional.normalize(video.extras["video_key"], dim=-1)
        numbers = pretraining.key_numbers(2 * step, SMALL["queue_size"])
        queued = method.queues["video"].keys.T[numbers >= 0]
        assert torch.allclose(queued, torch.stack(keys)[numbers[numbers >= 0]], atol=1e-6)
    slow, momentum = weights[0], SMALL["momentum"]
    for before in weights[:-1]:
        slow = momentum * slow + (1 - momentum) * before
    assert torch.allclose(method.slow["temporal"].get_parameter(name), slow, atol=1e-6)


def test_keys_in_a_finished_queue_are_traced_to_their_captions(run):
    method = create_method(run)
    data, order = pretraining.training_batches(run, method)
    assert [len(batch) for batch in order] == [2] * 4  # a batch that is not full is dropped
    assert [epoch for batch in order for epoch, _ in batch] == [0] * 4 + [1] * 4
    method.train()
    for batch in order:  # no step is made: the keys of a clip stay the same
        clip = data.__getitems__(batch)
        method.loss(method.encode_text(clip), method.encode_video(clip), clip)
    table = pretraining.queued_keys(method, data, order)
    assert method.training
    assert table.column.tolist() == list(range(8))
    assert table.age.tolist() == [3, 3, 2, 2, 1, 1, 0, 0]
    assert table.caption.tolist() == [item for batch in order for _, item in batch]
    np.testing.assert_allclose(table.own, 1, atol=1e-5)
    assert table.other.max() < 1


def create_method(run):
    torch.manual_seed(0)
    return METHODS["hmmc-pretrain"](create_backbone(run.config.backbone), run.config.method)


def test_own_videos_in_the_queue_are_counted():
    order = [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(1, 0), (1, 3)]]
    assert pretraining.own_video_queued(order, 4) == pytest.approx(100 * 2 / 6)
    assert pretraining.own_video_queued(order, 2) == pytest.approx(100 * 1 / 6)


def test_masked_words_are_the_attribute_words_of_one_token(run):
    method = create_method(run).eval()
    truth = SimpleNamespace(attribute_words=lambda _: [(0, 2, "colour"), (0, 4, "everything")])
    table = pretraining.masked_words(method, run.manifest.split("test", "zh"), truth, 32, texts=1)
    assert table[["caption", "factor", "word"]].values.tolist() == [
        ["红色的圆", "colour", "“红色”"]
    ]
    assert table.guesses[0].count(", ") == 2


def test_tokens_are_text_or_bytes(run):
    tokenizer = create_backbone(run.config.backbone).tokenizer
    assert pretraining.token_text(tokenizer, tokenizer.encode("red")[0]) == "“red”"
    half = next(token for token, piece in tokenizer.decoder.items() if piece == "ä")  # byte e4
    assert pretraining.token_text(tokenizer, half) == "bytes e4"
    shown = [pretraining.token_text(tokenizer, token) for token in tokenizer.decoder]
    assert not any("\ufffd" in text for text in shown)
