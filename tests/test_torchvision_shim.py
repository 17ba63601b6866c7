"""torchvision imports beside any torch, and `import tvrkit` stays light."""

import subprocess
import sys

import torch

from tvrkit._torchvision import OPERATORS, declare_missing_operators

PROGRAM = """
import sys, tvrkit
print("open_clip" in sys.modules, "torchvision" in sys.modules)
import torchvision.transforms.v2
print("torchvision" in sys.modules)
"""


def test_torchvision_imports_after_tvrkit_which_imports_neither_it_nor_open_clip():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False", "True"]


def test_declaring_again_changes_nothing():
    schemas = [str(getattr(torch.ops.torchvision, name).default._schema) for name in OPERATORS]
    declare_missing_operators()
    assert [str(getattr(torch.ops.torchvision, name).default._schema) for name in OPERATORS] == schemas
