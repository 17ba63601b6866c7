"""A Space of a model hub: the search page over the videos that lie beside this file.

    tvrkit index videos --out index --run model     # or --backbone and --pretrained
    python app.py

Where the folder lies elsewhere by now, the index is told so at the start: files are known by their
content and are not read again. What is new among the videos is indexed then, too. A Space listens
on all addresses, so the page offers no indexing.
"""

import os
from pathlib import Path

from tvrkit.search.app import serve
from tvrkit.search.index import Index

if __name__ == "__main__":
    os.chdir(Path(__file__).parent)  # where `--run model` was said
    Index.build("videos", "index", Index.open("index").encoder)
    serve(["index"], host="0.0.0.0", port=7860)
