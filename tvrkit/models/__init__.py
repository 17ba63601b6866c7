"""The methods, one file a paper."""

from tvrkit import _torchvision  # noqa: F401  before anything imports open_clip
from tvrkit.models.clip4clip import CLIP4Clip
from tvrkit.models.dmae import DMAE
from tvrkit.models.dmae_extended import ExtendedDMAE
from tvrkit.models.glscl import GLSCL
from tvrkit.models.hmmc import HMMC, HMMCPretraining

METHODS = {
    "clip4clip": CLIP4Clip,
    "dmae": DMAE,
    "dmae-extended": ExtendedDMAE,
    "glscl": GLSCL,
    "hmmc": HMMC,
    "hmmc-pretrain": HMMCPretraining,
}
