"""The environment files say the same thing."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> list[str]:
    extras = PROJECT["optional-dependencies"]
    return [*PROJECT["dependencies"], *(entry for extra in extras.values() for entry in extra)]


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_environment_yml_has_the_requirements_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, _, section = environment["dependencies"]
    assert python == "python=3.11"
    assert section["pip"] == ["--editable .", *requirements()]


@pytest.mark.parametrize("requirement", requirements())
def test_the_lock_has_a_version_that_the_requirement_admits(requirement):
    wanted = Requirement(requirement)
    assert wanted.specifier.contains(locked()[canonicalize_name(wanted.name)])


def test_the_lock_names_exact_public_versions_and_no_place():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|@|\+cpu|^-", text, re.MULTILINE)


def test_the_installed_versions_are_those_of_the_lock():
    from importlib.metadata import version

    for name in ("torch", "open-clip-torch", "decord", "papermill", "nbval", "spacy"):
        assert version(name).split("+")[0] == locked()[name]
