"""A Space of a model hub: the search page over an index that lies beside this file.

    tvrkit index VIDEOS --out index --run RUN/RECIPE/seedK     # or --backbone and --pretrained
    python app.py

The videos must be where they were when they were indexed; a Space listens on all addresses, so the
page offers no indexing.
"""

from pathlib import Path

from tvrkit.search.app import serve

if __name__ == "__main__":
    serve([str(Path(__file__).with_name("index"))], host="0.0.0.0", port=7860)
