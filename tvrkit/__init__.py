"""tvrkit: a notebook-first reproducibility kit for text-video retrieval.

The functions of `VERBS` (`tvrkit.evaluate`, `tvrkit.score`, ...) are loaded when first asked for.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

VERBS = {"score": "score"}  # verb: its module
VERBS |= dict.fromkeys(("evaluate", "embed"), "given_weights")
VERBS |= dict.fromkeys(("from_pretrained", "save_pretrained", "push_to_hub"), "sharing")


def __getattr__(name: str) -> Any:
    if name not in VERBS:
        raise AttributeError(f"tvrkit has no {name!r}")
    return getattr(import_module(f"tvrkit.training.{VERBS[name]}"), name)
