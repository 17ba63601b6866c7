"""What every method inherits: encoding in two steps, and names that find classes again."""

import dataclasses

import pytest
import torch

from tests.fakes import FRAMES, WORDS, TwoLayers
from tvrkit.data.batch import TextVideoBatch, VideoFeatures
from tvrkit.models import METHODS, method_class, method_name
from tvrkit.models.clip4clip import CLIP4Clip
from tvrkit.models.method import Method, precision
from tvrkit.settings import TrainConfig

from .small_methods import make_backbone, make_batch, make_glscl, make_hmmc


class Plain(Method):
    def video_features(self, frames, mask):
        return VideoFeatures(None, frames, mask)


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(0)
    mask = torch.arange(WORDS) < torch.tensor([[7], [3]])
    frame_mask = torch.arange(FRAMES) < torch.tensor([[2], [5]])
    frames = torch.randint(0, 256, (2, FRAMES, 3, 2, 2), generator=random).to(torch.uint8)
    tokens = torch.randint(0, 40, (2, WORDS), generator=random)
    return TextVideoBatch(tokens, mask, mask.long(), frames, frame_mask)


def test_a_method_needs_only_what_it_adds(batch):
    method = Plain(TwoLayers(), None)
    text, video = method.encode_text(batch), method.encode_video(batch)
    assert torch.equal(video.frames, method.backbone.encode_frames(batch.frames))
    assert torch.equal(text.words, method.backbone.encode_text(batch.tokens, batch.token_mask)[0])
    cosine = method.explain(text, video)["frame_text"]
    expected = torch.cosine_similarity(video.frames, text.sentence[:, None], dim=-1)
    torch.testing.assert_close(cosine, expected * batch.frame_mask)
    assert not cosine.requires_grad
    method.before_step()
    for missing in (method.similarity, method.loss):
        with pytest.raises(NotImplementedError):
            missing(text, video, *([batch] if missing == method.loss else []))


@torch.no_grad()
@pytest.mark.parametrize("make", [make_glscl, make_hmmc])
def test_video_features_are_what_encode_video_gives(make):
    method, batch = make(), make_batch()
    frames = method.backbone.encode_frames(batch.frames)
    whole, half = method.encode_video(batch), method.video_features(frames, batch.frame_mask)
    text = method.encode_text(batch)
    assert torch.equal(method.similarity(text, whole), method.similarity(text, half))


@pytest.mark.parametrize("name", ["clip4clip", "dmae", "glscl", "hmmc"])
def test_captions_of_one_video_repel_each_other_as_released_only(name):
    """All four codes take the diagonal for the only positives (finding 38)."""
    batch, small = make_batch(), {"dmae": {"max_words": 10, "max_frames": 4}}
    losses = {}
    for fidelity in ("released", "corrected"):
        cls = METHODS[name]
        settings = cls.Settings(**small.get(name, {}), fidelity=fidelity)
        method = cls(make_backbone(), settings).eval()
        sides = method.encode_text(batch), method.encode_video(batch)
        shared = dataclasses.replace(batch, video_index=torch.tensor([0, 1, 0]))
        losses[fidelity] = [method.loss(*sides, each)["loss"].item() for each in (batch, shared)]
    assert losses["released"][0] == losses["released"][1]
    assert losses["corrected"][0] > losses["corrected"][1]


def test_names_and_classes_find_each_other():
    for name, cls in METHODS.items():
        assert method_class(name) is cls
    assert method_name(make_hmmc()) == "hmmc"
    with pytest.raises(ValueError, match=r"unknown method 'hmm': .*near it: hmmc"):
        method_class("hmm")


def test_a_mean_over_frames_does_not_see_their_order_and_a_transformer_does():
    batch = make_batch()
    heads = {"meanP": 0.0, "seqTransf": None}
    for head, expected in heads.items():
        torch.manual_seed(0)
        method = CLIP4Clip(make_backbone(), CLIP4Clip.Settings(head=head, layers=1)).eval()
        moved = method.signs(batch)["change by reversed frames"]
        assert moved == pytest.approx(0, abs=1e-4) if expected == 0 else moved > 1e-4


def test_concepts_that_are_the_same_have_a_cosine_of_one():
    glscl, batch = make_glscl(), make_batch()
    apart = glscl.signs(batch)["cosine between video concepts"]
    glscl.queries["both"].weight.data[:] = glscl.queries["both"].weight[0].detach()
    assert glscl.signs(batch)["cosine between video concepts"] == pytest.approx(1, abs=1e-5)
    assert apart < 1


def test_precision_is_what_is_named_within_and_not_behind():
    found = {}
    for name in ("bf16", "tf32", "fp32"):
        with precision(TrainConfig(precision=name), "cpu"):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
            found[name] = product.dtype, torch.backends.cuda.matmul.allow_tf32
    assert found == {
        "bf16": (torch.bfloat16, True),
        "tf32": (torch.float32, True),
        "fp32": (torch.float32, False),
    }
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_precision_leaves_the_settings_of_others_as_they_were(name):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # that no setting of ours asks for
    try:
        with pytest.raises(KeyError), precision(TrainConfig(precision=name), "cpu"):
            raise KeyError
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
