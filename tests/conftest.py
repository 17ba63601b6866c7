"""Fixtures every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TQDM_DISABLE", "1")

BESIDE = Path(__file__).resolve().parents[2] / "shared"


def _beside(name: str, variable: str) -> Path:
    folder = Path(os.environ.get(variable, BESIDE / name))
    if not folder.is_dir():
        pytest.skip(f"{name} is not at hand: set {variable} to its folder")
    return folder


def pytest_collectstart():
    """Not in the process that only starts the workers: they need not wait until it has torch."""
    import torch

    import tvrkit.models  # noqa: F401  declares what torchvision's wheel may lack, before its import

    torch.set_num_threads(1)  # two test processes share two cores


def pytest_collection_modifyitems(items):
    """Several workers begin with the files that take long, so that they end together."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def realdata() -> Path:
    """Folder of real annotations and clips (TVRKIT_REALDATA, or ../shared/realdata)."""
    return _beside("realdata", "TVRKIT_REALDATA")


@pytest.fixture
def golden() -> Path:
    """Folder of the full oracle files (TVRKIT_GOLDEN, or ../shared/golden)."""
    return _beside("golden", "TVRKIT_GOLDEN")


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory) -> Path:
    """The smoke profile's data set, made once for all test processes; not to be written to."""
    from tvrkit import recipes
    from tvrkit.training import runs

    mine = tmp_path_factory.getbasetemp()
    shared = mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVRKIT_HOME", str(shared / "smoke"))
        return runs.prepared(recipes.load_recipe("clip4clip_shapes", profile="smoke")).root


@pytest.fixture(scope="module")
def smoke_home(tmp_path_factory, smoke_data) -> Iterator[Path]:
    """TVRKIT_HOME of a module: a folder of its own that has the smoke profile's data set."""
    home = tmp_path_factory.mktemp("home")
    (home / smoke_data.parent.name).mkdir()
    (home / smoke_data.parent.name / smoke_data.name).symlink_to(smoke_data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVRKIT_HOME", str(home))
        yield home
