"""Search in one's own videos: an index of a folder, two-stage search in it, a page over it."""
