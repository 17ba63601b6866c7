"""Data: annotations, decoding, the frame store, text and loaders."""
