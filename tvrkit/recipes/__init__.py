"""Recipes: one YAML file per claimed result, read strictly.

An unknown key, a wrong type, or a string where a number belongs is an error that names the key. A
default lives in `tvrkit.settings`, or in a method's own `Settings`, and nowhere else.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tvrkit import files
from tvrkit.settings import SECTIONS, Config, Profile, choose, parse


def recipe_names() -> list[str]:
    """Every recipe of the package."""
    return sorted({path.stem for path in files.RECIPES.glob("*.yaml")} - {"profiles", "sweeps"})


def load_recipe(recipe: str, overrides: Sequence[str] = (), profile: str | None = None) -> Config:
    """Read a recipe by name or path, then the profile's overrides, then `overrides`.

    Args:
        recipe: name of a packaged recipe, or path of a YAML file.
        overrides: "section.key=value" strings, the value in YAML ("train.lr=1.0e-4").
        profile: a key of `recipes/profiles.yaml`.

    Raises:
        ValueError: unknown recipe, section, key or method, or a value of the wrong type; the key is
            named.
        FileNotFoundError: `recipe` is a path, and nothing is there.
    """
    path = Path(recipe)
    if not recipe.endswith(".yaml"):
        path = files.RECIPES / f"{choose('recipe', recipe, recipe_names())}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"recipe {path}: no such file")
    raw = read_sections(path)
    # from the authors' scripts: for readers, and held against the table
    raw.pop("departures", None)
    applied = [*(load_profile(profile).overrides if profile else []), *overrides]
    for override in applied:
        _apply(raw, override)
    return build(raw, path.stem)


def load_profile(name: str) -> Profile:
    """A profile of `recipes/profiles.yaml`."""
    profiles = yaml.safe_load(files.read_text(files.RECIPES / "profiles.yaml"))
    return parse(Profile, profiles[choose("profile", name, profiles)], f"profile {name}")


def build(raw: dict, recipe: str) -> Config:
    """A `Config` from the nested dict that a recipe file holds."""
    from tvrkit.models import METHODS, method_class  # loads torch: only where a method is needed

    files.check_name("recipe", recipe)
    for section in raw:
        choose("section", section, [*SECTIONS, "method"])
    method = dict(raw.get("method") or {})
    names = f"one of {', '.join(sorted(METHODS))}"
    files.expect("name" in method, f"recipe {recipe}: method.name is missing", names, "none")
    name = method.pop("name")
    settings: Any = parse(method_class(name).Settings, method, "method")
    parts: dict[str, Any] = {
        key: parse(cls, raw.get(key) or {}, key) for key, cls in SECTIONS.items()
    }
    return Config(recipe=recipe, method_name=name, method=settings, **parts)


def to_dict(config: Config) -> dict:
    """The nested dict that `build` reads back to an equal `Config`."""
    raw = {key: dataclasses.asdict(getattr(config, key)) for key in SECTIONS}
    raw["method"] = {"name": config.method_name, **dataclasses.asdict(config.method)}
    return raw


def _apply(raw: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not parents:
        raise ValueError(f"override {files.shown(override)}: expected section.key=value")
    for parent in parents:
        raw[parent] = raw.get(parent) or {}
        raw = raw[parent]
        if not isinstance(raw, dict):
            raise ValueError(f"override {files.shown(override)}: {parent} is a value, no section")
    raw[last] = _yaml(value, f"override {files.shown(override)}")


class _Loader(yaml.SafeLoader):
    """YAML of plain values: each key once, and nothing twice by reference (800 bytes of aliases of
    aliases are written out as gigabytes)."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"the alias *{self.peek_event().anchor}: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise ValueError(f"a key twice among {files.shown(list(mapping))}")
        return mapping


def _yaml(text: str, where: str):
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # PyYAML raises AttributeError, IndexError and others too
        got = " ".join(str(error).split())
        raise ValueError(f"{where}: expected YAML: {got:.300}") from None


def read_sections(path: Path) -> dict:
    """The sections of keys that a YAML file holds.

    Raises:
        ValueError: anything else; the file is named.
    """
    raw = _yaml(files.read_text(path), str(path)) or {}
    if not isinstance(raw, dict) or not all(isinstance(part, dict | None) for part in raw.values()):
        raise ValueError(f"{path}: expected sections of keys, got {files.shown(raw)}")
    return raw
