"""Two processes that train as one."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.training import two_processes
from tests.training.toy import batch_of
from tests.training.two_processes import CHUNKED, RECIPES, launch
from tvrkit import files
from tvrkit.training import runs
from tvrkit.training.distributed import average_gradients, gather

GRADIENT, WEIGHTS = 1e-6, 1e-5


def test_one_process_gathers_nothing():
    batch, p = batch_of(range(4)), torch.nn.Parameter(torch.ones(2))
    p.grad = torch.full((2,), 3.0)
    average_gradients([p])
    assert gather(batch) is batch
    assert p.grad.tolist() == [3.0, 3.0]


@pytest.fixture(scope="module")
def ended(smoke_home):
    """What became of two processes that made gradients and runs, until one was killed."""
    (smoke_home / "two").mkdir()
    return launch(two_processes.__file__, smoke_home / "two", "two", home=smoke_home)


@pytest.fixture(scope="module")
def home(smoke_home, ended):
    """A home with the gradients and the runs of one process and of two."""
    assert len([*(smoke_home / "two").glob("* is done")]) == 2, ended.stderr[-3000:]
    (smoke_home / "one").mkdir()
    two_processes.main(smoke_home / "one", "one")
    return smoke_home


def run_of(run, name):
    return runs.Run(files.run(f"{run}/{name}/{name.removesuffix('_released')}/seed0"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "chunk"), [*((name, None) for name in RECIPES), *((name, 3) for name in CHUNKED)]
)
def test_two_processes_have_the_gradient_of_one(home, name, chunk):
    """And its queues, BatchNorm statistics and loss; in chunks too."""
    one, two = (
        torch.load(home / run / f"{name} {chunk}.pt", weights_only=True) for run in ("one", "two")
    )
    assert one.keys() == two.keys()
    for key, expected in one.items():
        torch.testing.assert_close(two[key], expected, rtol=1e-4, atol=GRADIENT, msg=key)


@pytest.mark.slow
def test_a_rank_that_raises_ends_the_job(tmp_path):
    ended = launch(two_processes.__file__, tmp_path, home=tmp_path, limit=100)
    assert ended.returncode != 0
    assert "ZeroDivisionError" in ended.stderr


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_job(home, ended):
    assert ended.returncode != 0
    assert re.search(r"exitcode\s*: -9", ended.stderr), ended.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_train_and_score_as_one(home, name):
    one, two = (run_of(run, name) for run in ("one", "two"))
    weights = [load_file(run.folder / runs.CHECKPOINT) for run in (one, two)]
    for key, expected in weights[0].items():
        torch.testing.assert_close(weights[1][key], expected, rtol=0, atol=WEIGHTS, msg=key)
    assert (name == "glscl_shapes") == (expected.dtype == torch.float64)
    assert one.metrics == two.metrics
    for key, ranks in one.ranks.items():
        np.testing.assert_array_equal(two.ranks[key], ranks)
    assert {path.name for path in one.folder.iterdir()} == {
        path.name for path in two.folder.iterdir()
    }
    for table in ("history", "curve"):
        columns = getattr(one, table).select_dtypes("number")
        np.testing.assert_allclose(getattr(two, table)[columns.columns], columns, atol=1e-4)
