"""Where things are, and how a file is written whole or not at all: a leaf that loads nothing
heavy."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
RECIPES = PACKAGE / "recipes"
ASSETS = PACKAGE / "assets"


def home() -> Path:
    """The folder that holds `notebooks/`, `data/` and `reports/`.

    `TVRKIT_HOME` where it is set, else the checkout the package is installed from, else the current
    folder.
    """
    if "TVRKIT_HOME" in os.environ:
        return Path(os.environ["TVRKIT_HOME"]).resolve()
    checkout = PACKAGE.parent
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()


def data(name: str) -> Path:
    """The folder of the prepared data set `name`."""
    return home() / "data" / name


def run(name: str) -> Path:
    """The folder of the run `name` ("quick"), or of a part of one ("quick/dmae_shapes/seed0").

    Raises:
        ValueError: a name that would lead out of reports/, or to all of it.
    """
    if not name or not all(re.fullmatch(r"[\w-][\w.-]*", part) for part in name.split("/")):
        raise ValueError(f"run name {name!r}: expected letters, digits, '_', '-' and '.'")
    return home() / "reports" / name


def notebooks() -> Path:
    """The folder of the numbered notebooks."""
    return home() / "notebooks"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary name beside it, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # a power cut must not leave the name with half of the text
    temporary.replace(path)


def write_json_lines(path: Path, rows: Iterable[dict]) -> None:
    """`write_text` of one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json(path: Path, value) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
