"""Annotation files read strictly: exactly what is in them, or one error that names the file and the
place."""

import csv
import io
import pickle
import pickletools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tvrkit.files import expect, parse_json, read_text, shown


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
    check_unique(path.name, "id", ids)
    return ids


def check_unique(where: str, what: str, names: Sequence[str]) -> None:
    """ValueError where a name stands twice."""
    if len(set(names)) < len(names):
        name, times = Counter(names).most_common(1)[0]
        raise ValueError(f"{where}: expected each {what} once, got {shown(name)} {times} times")


def read_json(path: Path, kind: Any):
    """A JSON file of the type `kind`.

    Raises:
        ValueError: malformed, a key twice in one object, NaN, a missing field or a wrong type; says
            where.
    """
    return checked(_parse(read_text(path), path.name), kind, path.name)


def read_json_lines(path: Path, kind: Any) -> list:
    """One JSON value of the type `kind` a line; blank lines count for nothing. Errors as
    `read_json`."""
    lines = enumerate(read_lines(path), start=1)
    rows = [_parse(line, f"{path.name} line {number}") for number, line in lines if line.strip()]
    return checked(rows, list[kind], path.name)


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a csv with a header that has `columns`, as dicts.

    Raises:
        ValueError: no header, a missing column, or a row of another length; says which.
    """
    try:
        header, *rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path.name}: expected a csv with a header, got {error}") from None
    missing = ", ".join(name for name in columns if name not in header)
    expect(not missing, path.name, f"columns {', '.join(columns)}", f"no {missing}")
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
        expect(len(row) == length, f"{where} {number}", f"{length} {what}", len(row))


def _instructions(names: str) -> set[str]:
    return {code.name for code in pickletools.opcodes if re.fullmatch(names, code.name)}


TUPLED = 1 << 24  # items of a pickle's tuples, each counted wherever it stands
# A pickle is a program: these of its instructions build text, numbers and containers, no more.
TEXTS = _instructions("(SHORT_)?(BIN)?(STRING|UNICODE8?)")
PUTS, GETS = _instructions("MEMOIZE|(LONG_)?(BIN)?PUT"), _instructions("(LONG_)?(BIN)?GET")
NUMBERS = _instructions("NONE|NEWTRUE|NEWFALSE|(BIN)?INT[12]?|LONG1?|(BIN)?FLOAT")
CONTAINERS = _instructions("MARK|(EMPTY_)?(LIST|DICT|TUPLE)|TUPLE[123]|APPENDS?|SETITEMS?")
PLAIN = TEXTS | PUTS | GETS | NUMBERS | CONTAINERS | {"PROTO", "FRAME", "STOP"}


def read_pickle(path: Path, kind: Any):
    """A pickle of the type `kind` that holds nothing but lists, dicts, tuples, strings and numbers.

    Raises:
        ValueError: anything else in it (no code of the file ever runs), a container that stands in
            two places, or a damaged file.
    """
    data = path.read_bytes()
    try:
        _check_plain(data)
        # the unpickler in Python: C's allocates whatever a damaged index asks for
        value = pickle._Unpickler(io.BytesIO(data), encoding="utf-8").load()
    except Exception as error:  # as the pickle module documents, a damaged file may raise anything
        expected = "expected a pickle of builtin types"
        raise ValueError(f"{path.name}: {expected}, got {error!r:.200}") from None
    return checked(value, kind, path.name)


def _check_plain(data: bytes) -> None:
    """ValueError unless all instructions are `PLAIN`, and only text is used twice: 300 bytes of
    lists of one list write out as terabytes."""
    kept: dict[Any, bool] = {}  # place in the pickle's memory -> whether text is there
    is_text = False  # what was made last
    for opcode, argument, position in pickletools.genops(data):
        if opcode.name not in PLAIN:
            raise ValueError(f"{opcode.name} at byte {position}, which is not allowed")
        if opcode.name in PUTS:
            kept[len(kept) if argument is None else argument] = is_text
        elif opcode.name in GETS and not kept.get(argument):
            raise ValueError(f"a container in two places at byte {position}")
        elif opcode.name != "FRAME":
            is_text = opcode.name in TEXTS


def check_tuples(pickle: Any) -> None:
    """Refuse a pickle, a file that is read to its end, whose tuples hold one another so often that
    no one could hash them: 100 bytes of pairs of pairs are a dict's key of 2^50 items.

    Raises:
        ValueError: they do; or whatever a damaged pickle makes of its stack.
    """
    sizes: list[int] = []  # of what is on the stack, written out
    marks: list[int] = []
    kept: dict[Any, int] = {}
    for opcode, argument, position in pickletools.genops(pickle):
        if opcode.name == "MARK":
            marks.append(len(sizes))
        elif opcode.name in PUTS:
            kept[len(kept) if argument is None else argument] = sizes[-1]
        else:
            takes, bottom = opcode.stack_before, len(sizes) - len(opcode.stack_before)
            if pickletools.markobject in takes:
                bottom = marks.pop() - takes.index(pickletools.markobject)
            size = kept[argument] if opcode.name in GETS else 1 + sum(sizes[bottom:])
            if size > TUPLED:
                raise ValueError(f"more than {TUPLED:,} items in each other at byte {position}")
            sizes[bottom:] = [size] * len(opcode.stack_after)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, ended by LF or CRLF only: U+2028 and its like are text."""
    return [line.removesuffix("\r") for line in read_text(path).split("\n")]


def _parse(text: str, where: str):
    def unique(pairs):
        check_unique("an object", "key", [key for key, _ in pairs])
        return dict(pairs)

    def refuse(name):
        raise ValueError(f"{name}, which is no number")

    return parse_json(text, where, object_pairs_hook=unique, parse_constant=refuse)


def checked(value, kind, where: str):
    """`value`, if it is of the type `kind`; else a ValueError that says where it is not."""
    try:
        return TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the top"
        got = f"{first['msg']}, got {shown(first['input'])}"
        raise ValueError(f"{where}: at {place}: {got}") from None
