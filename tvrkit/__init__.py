"""tvrkit: a notebook-first reproducibility kit for text-video retrieval."""

__version__ = "0.2.0"
