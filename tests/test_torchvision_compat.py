"""torchvision imports beside any torch, and `import tvrkit` stays light."""

import subprocess
import sys

import torch

from tvrkit.torchvision_compat import OPERATORS, declare_missing_operators

PROGRAM = """
import sys, tvrkit
print("torch" in sys.modules, "torchvision" in sys.modules)
import tvrkit.models
print("torchvision" in sys.modules)
"""


def test_tvrkit_is_light_and_its_models_import_torchvision():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False", "True"]


def test_declaring_again_changes_nothing():
    schemas = [str(getattr(torch.ops.torchvision, name).default._schema) for name in OPERATORS]
    declare_missing_operators()
    assert [
        str(getattr(torch.ops.torchvision, name).default._schema) for name in OPERATORS
    ] == schemas
