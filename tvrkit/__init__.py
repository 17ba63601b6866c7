"""tvrkit: a notebook-first reproducibility kit for text-video retrieval."""

from tvrkit._torchvision import declare_missing_operators

__version__ = "0.1.0"

declare_missing_operators()
