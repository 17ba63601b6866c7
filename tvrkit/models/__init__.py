"""The methods, one file a paper."""

import importlib
import sys
from pathlib import Path

from tvrkit import files, torchvision_compat  # noqa: F401  before anything imports open_clip
from tvrkit.models.clip4clip import CLIP4Clip
from tvrkit.models.dmae import DMAE
from tvrkit.models.glscl import GLSCL
from tvrkit.models.hmmc import HMMC
from tvrkit.models.hmmc_pretraining import HMMCPretraining
from tvrkit.models.method import Method
from tvrkit.settings import choose

METHODS: dict[str, type[Method]] = {
    "clip4clip": CLIP4Clip,
    "dmae": DMAE,
    "glscl": GLSCL,
    "hmmc": HMMC,
    "hmmc-pretrain": HMMCPretraining,
}


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Args:
        name: a key of `METHODS`, or "my_package.my_module:MyMethod" of a method of one's own; its
            module is also looked for in the current folder and in the checkout.

    Raises:
        ValueError: an unknown name, a module that can't be imported, or a class that is no method.
    """
    module_name, colon, class_name = name.partition(":")
    if not colon:
        return METHODS[choose("method", name, METHODS)]
    folders = [str(Path.cwd()), str(files.PACKAGE.parent)]
    sys.path += [folder for folder in folders if folder not in sys.path]
    try:
        cls = vars(importlib.import_module(module_name)).get(class_name)
    except Exception as error:  # whatever the user's module raises
        why = f"{module_name} can't be imported: {files.reason(error)}"
        raise ValueError(f"method {name}: {why}") from error
    if not (isinstance(cls, type) and issubclass(cls, Method) and hasattr(cls, "Settings")):
        expected = f"a class {class_name} in it, a subclass of {Method.__module__}.Method"
        raise ValueError(f"method {name}: expected {expected} with Settings, got {cls!r}")
    return cls


def method_name(method: Method) -> str:
    """The name under which `method_class` finds the class of `method`."""
    cls = type(method)
    known = {value: key for key, value in METHODS.items()}
    return known.get(cls, f"{cls.__module__}:{cls.__qualname__}")
