"""Annotation files read strictly: exactly what is in them, or one error that names the file and the
place."""

from __future__ import annotations

import builtins
import csv
import io
import json
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError


def read_ids(path: Path) -> list[str]:
    """The ids of a list, in its order: one a line, a csv with a column `video_id`, or JSON strings.

    Raises:
        ValueError: no such column, no list of strings, or an id twice.
    """
    if path.suffix == ".json":
        ids = read_json(path, list[str])
    elif path.suffix == ".csv":
        ids = [row["video_id"] for row in read_csv(path, ["video_id"])]
    else:
        ids = [line.strip() for line in read_lines(path) if line.strip()]
    if len(set(ids)) < len(ids):
        video, times = Counter(ids).most_common(1)[0]
        raise ValueError(f"{path.name}: expected each id once, got {video!r} {times} times")
    return ids


def read_json(path: Path, kind: Any):
    """A JSON file of the type `kind`.

    Raises:
        ValueError: malformed, a key twice in one object, NaN, a missing field or a wrong type; says
            where.
    """
    return _checked(_parse(_read_text(path), path.name), kind, path.name)


def read_json_lines(path: Path, kind: Any) -> list:
    """One JSON value of the type `kind` a line; blank lines count for nothing. Errors as
    `read_json`."""
    lines = enumerate(read_lines(path), start=1)
    rows = [_parse(line, f"{path.name} line {number}") for number, line in lines if line.strip()]
    return _checked(rows, list[kind], path.name)


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a csv with a header that has `columns`, as dicts.

    Raises:
        ValueError: no header, a missing column, or a row of another length; says which.
    """
    try:
        header, *rows = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path.name}: expected a csv with a header, got {error}") from None
    if missing := [name for name in columns if name not in header]:
        expected = f"expected columns {', '.join(columns)}"
        raise ValueError(f"{path.name}: {expected}, missing {', '.join(missing)}")
    _same_length([row or header for row in rows], len(header), f"{path.name} line", "fields", 2)
    return [dict(zip(header, row, strict=True)) for row in rows if row]


def read_table(path: Path, columns: int) -> list[list[str]]:
    """Rows of a tab-separated file without header. Quotes are literal text.

    Raises:
        ValueError: a row that has not exactly `columns` fields; says which.
    """
    rows = [line.split("\t") for line in read_lines(path) if line.strip()]
    _same_length(rows, columns, f"{path.name} row", "tab-separated fields", 1)
    return rows


def _same_length(rows: list[list[str]], length: int, where: str, what: str, start: int) -> None:
    for number, row in enumerate(rows, start):
        if len(row) != length:
            raise ValueError(f"{where} {number}: expected {length} {what}, got {len(row)}")


def read_pickle(path: Path, kind: Any):
    """A pickle of the type `kind` that holds nothing but builtin containers, strings and numbers.

    Raises:
        ValueError: anything else in it (no code of the file ever runs), or a damaged file.
    """
    try:
        value = _BuiltinsUnpickler(io.BytesIO(path.read_bytes()), encoding="utf-8").load()
    except Exception as error:  # as the pickle module documents, a damaged file may raise anything
        expected = "expected a pickle of builtin types"
        raise ValueError(f"{path.name}: {expected}, got {error!r:.200}") from None
    return _checked(value, kind, path.name)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, ended by LF or CRLF only: U+2028 and its like are text."""
    return [line.removesuffix("\r") for line in _read_text(path).split("\n")]


# The unpickler in Python: C's allocates whatever a damaged index asks for.
class _BuiltinsUnpickler(pickle._Unpickler):
    ALLOWED = ("list", "dict", "tuple", "set", "str", "int", "float", "bool")

    def find_class(self, module, name):
        if module in ("builtins", "__builtin__") and name in self.ALLOWED:
            return vars(builtins)[name]
        raise ValueError(f"{module}.{name} is not allowed")


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"byte {error.object[error.start]:#x} at {error.start}"
        raise ValueError(f"{path.name}: expected UTF-8 text, got {got}") from None


def _parse(text: str, where: str):
    def unique(pairs):
        if len(pairs) > len(dict(pairs)):
            key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise ValueError(f"the key {key!r} twice")
        return dict(pairs)

    def refuse(name):
        raise ValueError(f"{name}, which is no number")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from None


def _checked(value, kind, where: str):
    try:
        return TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the top"
        got = f"{first['msg']}, got {first['input']!r:.80}"
        raise ValueError(f"{where}: at {place}: {got}") from None
