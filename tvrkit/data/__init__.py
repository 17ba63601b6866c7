"""Data: annotations, decoding, the frame store, text and loaders."""

from tvrkit.data.annotations import load_annotations

__all__ = ["load_annotations"]
