"""tvrkit: a notebook-first reproducibility kit for text-video retrieval.

`tvrkit.evaluate`, `tvrkit.embed` and `tvrkit.score` are loaded when they are first asked for.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

VERBS = {"evaluate": "evaluate", "embed": "evaluate", "score": "score"}  # verb: its module


def __getattr__(name: str) -> Any:
    if name not in VERBS:
        raise AttributeError(f"tvrkit has no {name!r}")
    return getattr(import_module(f"tvrkit.training.{VERBS[name]}"), name)
