"""Where things are, how a file is written whole or not at all, and how one of a stranger is read:
a leaf that loads nothing heavy."""

import gzip
import hashlib
import json
import os
import re
import reprlib
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

PACKAGE = Path(__file__).resolve().parent
RECIPES = PACKAGE / "recipes"
ASSETS = PACKAGE / "assets"
NAME = re.compile(r"[\w-][\w.-]{0,99}")
_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother = 2, 80, 80

CAME = r"WeightsUnpickler error: |(?=Unexpected key|size mismatch)"  # in torch's long messages


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
    """The folder of the prepared data set `name`; ValueError as `check_name`."""
    return home() / "data" / check_name("data set", name)


def run(name: str) -> Path:
    """The folder of the run `name` ("quick"), or of a part of one ("quick/dmae_shapes/seed0").

    Raises:
        ValueError: a name that would lead out of reports/, or to all of it.
    """
    for part in name.split("/"):
        check_name("run", part)
    return home() / "reports" / name


def check_name(kind: str, name: str) -> str:
    """`name`, if it is one folder's: ValueError where it is empty, hidden, longer than a row of a
    table holds, or would lead elsewhere."""
    if not NAME.fullmatch(name):
        expected = "expected letters, digits, '_', '-' and '.', not first, at most 100"
        raise ValueError(f"{kind} name {shown(name)}: {expected}")
    return name


def notebooks() -> Path:
    """The folder of the numbered notebooks."""
    return home() / "notebooks"


def shown(value: Any) -> str:
    """`value` as an error shows it: short, whatever it holds (a pickle's 300 bytes can hold lists
    of lists that are written out in terabytes)."""
    return _SHOWN.repr(value)


def expect(holds: Any, where: object, expected: object, got: object) -> None:
    """Go on if it `holds`.

    Raises:
        ValueError: it does not; in the words of every refusal, where it is, what was expected
            there, and what came.
    """
    if not holds:
        raise ValueError(f"{where}: expected {expected}, got {got}")


def reason(error: Exception) -> str:
    """An error as a part of another's line; torch's without what it lacks and what it advises
    (to unpickle nevertheless): what came."""
    message = re.split(CAME, str(error))[-1].partition(" Please use `torch")[0]
    return " ".join(f"{type(error).__name__}: {message}".split())[:300]


def printable(text: str) -> str:
    """`on_one_line` but for line ends and tabs: what a terminal would obey, and what turns the
    direction of writing round, is written out."""
    return "".join(c if c in "\n\t" else on_one_line(c) for c in text)


def on_one_line(text: str) -> str:
    """`text` with everything written out that is no letter, sign or blank, line ends too: the name
    of a file can hold any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(card: dict) -> dict:
    """`card` with `sha256`, that of everything else in it: whoever reads one compares the two."""
    rest = {key: value for key, value in card.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True)
    return rest | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


@contextmanager
def alone(lock: Path, busy: str) -> Iterator[None]:
    """Hold a lock file; OSError at once, which says what is `busy`, where another process does."""
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise OSError(busy) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: the block writes to the temporary name that it is given,
    beside `path` and with its suffix; then it is renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        temporary.touch()
        rights = temporary.stat().st_mode
        yield temporary
        temporary.chmod(rights)  # safetensors leaves its files to their owner alone
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # a power cut must not leave the name with half of the text
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_gzip(path: Path, text: str) -> None:
    """`write_text`, compressed: the same bytes at any time."""
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))


def write_json_lines(path: Path, rows: Iterable[dict]) -> None:
    """`write_text` of one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json(path: Path, value) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark; ValueError where it is none."""
    if path.exists() and not path.is_file():  # a pipe, or /dev/zero, would be read for ever
        raise ValueError(f"{path.name}: expected a file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"byte {error.object[error.start]:#x} at {error.start}"
        raise ValueError(f"{path.name}: expected UTF-8 text, got {got}") from None


def parse_json(text: str, where: str, **hooks) -> Any:
    """A JSON value; `hooks` are those of `json.loads`. ValueError, naming `where`, if it is
    malformed."""
    try:
        return json.loads(text, **hooks)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from None


def json_object(text: str, where: object) -> dict[str, Any]:
    """The JSON object that a text is; ValueError, naming `where`, if it is none."""
    value = parse_json(text, str(where))
    expect(isinstance(value, dict), where, "a JSON object", shown(value))
    return value


def read_json(path: Path) -> dict[str, Any]:
    """`json_object` of a file."""
    return json_object(read_text(path), path)


def check_zip(path: Path, limit: int | None = None) -> None:
    """Refuse a zip archive that would unpack to more than `limit` bytes, before anything is
    unpacked. None: to more than its own size, as archives of weights are not compressed; then the
    checksums of what is in it are compared too.

    Raises:
        ValueError: it would, or it is damaged.
    """
    most = path.stat().st_size if limit is None else limit
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            bad = archive.testzip() if limit is None and size <= most else None
    except Exception as error:  # a damaged directory may raise anything
        raise ValueError(f"{path}: expected a zip archive, got {error!r:.200}") from None
    expect(size <= most, path, f"at most {most:,} bytes unpacked", f"{size:,}")
    if bad:
        raise ValueError(f"{path}: damaged at {shown(bad)}: its checksum differs")
