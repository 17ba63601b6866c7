"""The methods, one file a paper."""

from tvrkit.methods.clip4clip import CLIP4Clip
from tvrkit.methods.dmae import DMAE
from tvrkit.methods.dmae_extended import ExtendedDMAE
from tvrkit.methods.glscl import GLSCL
from tvrkit.methods.hmmc import HMMC, HMMCPretraining

METHODS = {
    "clip4clip": CLIP4Clip,
    "dmae": DMAE,
    "dmae-extended": ExtendedDMAE,
    "glscl": GLSCL,
    "hmmc": HMMC,
    "hmmc-pretrain": HMMCPretraining,
}
