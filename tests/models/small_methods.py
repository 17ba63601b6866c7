"""Methods over a small CLIP, for checkpoints."""

import torch
from open_clip import CustomTextCLIP

from tvrkit.data.batch import TextVideoBatch
from tvrkit.models.backbone import Backbone
from tvrkit.models.glscl import GLSCL, GLSCLSettings
from tvrkit.models.hmmc import HMMC
from tvrkit.models.hmmc_pretraining import HMMCPretraining

WIDTH = 64


class Tokenizer:
    vocab_size = 50
    encoder = {"*</w>": 7}  # noqa: RUF012

    def __call__(self, texts):
        return torch.tensor([[48, *map(len, text.split()), 49] for text in texts])


def make_backbone(name="small", seed=0):
    torch.manual_seed(seed)
    vision = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
    text = {"context_length": 10, "vocab_size": 50, "width": 64, "heads": 1, "layers": 2}
    clip = CustomTextCLIP(WIDTH, vision, text, quick_gelu=True)
    clip.visual.preprocess_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    return Backbone(clip, Tokenizer(), name)


def make_glscl(name="small", seed=0, **changes):
    settings = {"feedforward": 16, "decoder_layers": 2, "queries": 3, "temporal_layers": 2}
    return GLSCL(make_backbone(name, seed), GLSCLSettings(**(settings | changes))).eval()


def make_hmmc(name="small", seed=0, cls=HMMC, **changes):
    settings = {"temporal_layers": 2, "max_frames": 6}
    if cls is HMMCPretraining:
        settings |= {"projector_width": 8, "queue_size": 5, "frame_queue_size": 7}
    return cls(make_backbone(name, seed), cls.Settings(**(settings | changes))).eval()


def make_batch():
    random = torch.Generator().manual_seed(3)
    mask = torch.arange(10) < torch.tensor([[4], [10], [7]])
    tokens = torch.randint(1, 49, (3, 10), generator=random) * mask
    tokens[torch.arange(3), mask.sum(1) - 1] = 49
    frame_mask = torch.arange(4) < torch.tensor([[4], [2], [3]])
    rows = torch.arange(3)
    frames = torch.randn(3, 4, 3, 16, 16, generator=random)
    return TextVideoBatch(tokens, mask, mask.long(), frames, frame_mask, rows, rows, seed=rows)


@torch.no_grad()
def scores(method):
    batch = make_batch()
    return method.similarity(method.encode_text(batch), method.encode_video(batch))
