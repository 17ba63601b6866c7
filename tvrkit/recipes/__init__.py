"""Recipes: one YAML file per claimed result, read strictly.

An unknown key, a wrong type, or a string where a number belongs is an error that names the key. A
default lives in `tvrkit.settings`, or in a method's own `Settings`, and nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tvrkit import files
from tvrkit.settings import SECTIONS, Config, Profile, choose, parse


def recipe_names() -> list[str]:
    """Every recipe of the package."""
    return sorted(
        path.stem
        for path in files.RECIPES.glob("*.yaml")
        if path.stem not in ("profiles", "sweeps")
    )


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
    if path.suffix != ".yaml":
        path = files.RECIPES / f"{choose('recipe', recipe, recipe_names())}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"recipe {path}: no such file")
    raw = _yaml(path.read_text(encoding="utf-8"), f"recipe {path}") or {}
    if not isinstance(raw, dict) or not all(isinstance(part, dict | None) for part in raw.values()):
        raise ValueError(f"recipe {path}: expected sections of keys, got {raw!r:.80}")
    raw.pop(
        "departures", None
    )  # from the authors' scripts: for readers, and held against the table
    applied = [*(load_profile(profile).overrides if profile else []), *overrides]
    for override in applied:
        _apply(raw, override)
    return build(raw, path.stem)


def load_profile(name: str) -> Profile:
    """A profile of `recipes/profiles.yaml`."""
    profiles = _yaml((files.RECIPES / "profiles.yaml").read_text(encoding="utf-8"), "profiles.yaml")
    return parse(Profile, profiles[choose("profile", name, profiles)], f"profile {name}")


def build(raw: dict, recipe: str) -> Config:
    """A `Config` from the nested dict that a recipe file holds."""
    from tvrkit.models import METHODS, method_class  # loads torch: only where a method is needed

    for section in raw:
        choose("section", section, [*SECTIONS, "method"])
    method = dict(raw.get("method") or {})
    if "name" not in method:
        names = ", ".join(sorted(METHODS))
        raise ValueError(f"recipe {recipe}: method.name is missing: expected one of {names}")
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
        raise ValueError(f"override {override!r}: expected section.key=value")
    for parent in parents:
        raw[parent] = raw.get(parent) or {}
        raw = raw[parent]
        if not isinstance(raw, dict):
            raise ValueError(f"override {override!r}: {parent} is a value, not a section")
    raw[last] = _yaml(value, f"override {override!r}")


def _yaml(text: str, where: str):
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: expected YAML: {' '.join(str(error).split())}") from None
