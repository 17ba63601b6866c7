"""Data: annotations, decoding, the frame store, text and loaders."""

from tvrkit.data.adapters import load_annotations

__all__ = ["load_annotations"]
