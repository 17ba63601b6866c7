"""The examples do what their texts say: a method of one's own is trained and evaluated."""

import ast
import sys
from pathlib import Path

import pytest
import torch

from tvrkit.models import method_class
from tvrkit.training import runs

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SMALL = ["data.max_frames=2", "train.epochs=1", "eval.bootstrap=50"]


@pytest.fixture(scope="module")
def run(smoke_home):
    """The recipe of the example, trained in a home of its own."""
    recipe = str(EXAMPLES / "my_method.yaml")
    return runs.ensure(recipe, profile="smoke", overrides=SMALL, run="mine")


def test_a_method_of_ones_own_is_trained_evaluated_and_found_again(run):
    assert run.recipe == "my_method"
    assert run.metrics["t2v R@1"] > 0
    assert run.history["loss"].notna().all()
    fresh = type(run.method())
    assert fresh is method_class("examples.my_method:MyMethod")
    assert run.config.method == fresh.Settings(sharpness=4.0)


@torch.no_grad()
def test_its_frame_weights_are_a_distribution_over_real_frames(run):
    method, frames = run.method(), torch.randn(3, 4, run.method().backbone.width)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    video = method.video_features(frames, mask)
    weight = video.extras["frame_weight"]
    torch.testing.assert_close(weight.sum(dim=1), torch.ones(3))
    assert weight[~mask].abs().max() == 0
    torch.testing.assert_close(video.video.norm(dim=1), torch.ones(3))


def test_it_fits_on_a_page_and_names_are_documented():
    source = (EXAMPLES / "my_method.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 60
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.Module):
            assert ast.get_docstring(node)
    assert sys.modules["examples.my_method"].__file__ == str(EXAMPLES / "my_method.py")
