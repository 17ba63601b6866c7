"""One data set of the smallest preset for the tests of this folder."""

from pathlib import Path

import pandas as pd
import pytest

from tvrkit.data.records import read_json_lines
from tvrkit.shapes.dataset import prepare_shapes
from tvrkit.shapes.truth import Truth


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes-smoke"
    prepare_shapes(folder)
    return folder


@pytest.fixture(scope="session")
def truth(root) -> Truth:
    return Truth.open(root)


@pytest.fixture(scope="session")
def captions(root) -> pd.DataFrame:
    return pd.DataFrame(read_json_lines(root / "captions.jsonl", dict)).set_index("caption_id")
