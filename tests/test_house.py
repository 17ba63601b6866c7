"""The plan of the house: which room may import which, its size, and how long a function gets."""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tvrkit"
# From the ground up: a room imports from its own floor only within itself, and from lower ones.
FLOORS = (
    ("__init__", "torchvision_compat", "files"),
    ("settings", "html"),
    ("data",),
    ("shapes", "losses"),
    ("models",),
    ("recipes",),
    ("evaluation",),
    ("training",),
    ("inspection", "figures"),
    ("reporting", "search"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Without search (600) and scale-out (450) the aim is 5,200: far from it; this has to fall.
BUDGET = 10263
LONGEST, MEDIAN = 40, 8  # code lines of a function
NOT_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and (node.module or "") in known:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = {name for name in names if name in known}
            found |= inner or {node.module}
    return found - {"tvrkit"}


def code_lines(path: Path) -> set[int]:
    """Numbers of the lines that hold code: no docstring, no comment, no blank."""
    text = path.read_text(encoding="utf-8")
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = getattr(body[0], "value", None)
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                lines -= set(range(body[0].lineno, body[0].end_lineno + 1))
    return lines


def functions(path: Path) -> dict[str, int]:
    """Code lines of each function."""
    code = code_lines(path)
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {
        f"{module_name(path)}:{node.name}:{node.lineno}": len(
            code & set(range(node.lineno, node.end_lineno + 1))
        )
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_room_has_its_floor():
    assert {room(module) for module in modules()} == set(FLOOR)


@pytest.mark.parametrize("module", modules())
def test_arrows_go_down(module):
    own = room(module)
    up = {
        other
        for other in imports(modules()[module])
        if room(other) != own and FLOOR[room(other)] >= FLOOR[own]
    }
    assert not up, f"{module} imports {', '.join(sorted(up))} of the same floor or a higher one"


def test_no_circle():
    arrows = {module: imports(path) for module, path in modules().items()}
    while leaves := {module for module, others in arrows.items() if not others & arrows.keys()}:
        arrows = {module: others for module, others in arrows.items() if module not in leaves}
    assert not arrows, f"these import each other: {', '.join(sorted(arrows))}"


def test_the_package_is_thin():
    total = sum(len(code_lines(path)) for path in modules().values())
    assert total <= BUDGET, f"{total} code lines, at most {BUDGET}"


def test_functions_are_short():
    lengths = {name: size for path in modules().values() for name, size in functions(path).items()}
    assert {name: size for name, size in lengths.items() if size > LONGEST} == {}
    assert median(lengths.values()) <= MEDIAN


def test_no_layout_is_exempt_from_the_formatter():
    exempt = [name for name, path in modules().items() if "fmt: " in path.read_text("utf-8")]
    assert exempt == []


def test_every_module_has_its_test_file():
    without = [
        name
        for name, path in modules().items()
        if path.stem not in ("__init__", "__main__") and code_lines(path)
        if not (
            ROOT / "tests" / path.relative_to(PACKAGE).with_name(f"test_{path.stem}.py")
        ).exists()
    ]
    assert without == []


# Private names that are not the kit's: a library has no public one for what is asked.
FOREIGN = {
    *("_replace", "_fields", "_asdict"),  # public names of named tuples
    *("_Unpickler", "_schema", "_utils", "_python_dispatch", "_MODEL_CONFIGS"),
    *("_embeds", "_forward_hooks", "_forward_pre_hooks", "_cdata"),
}
PATCHERS = {"setattr", "delattr", "getattr", "object"}  # name what they reach in a string
READERS = sorted(
    path for room in ("examples", "tests", "tvrkit") for path in (ROOT / room).rglob("*.py")
)


def private_reach(text: str) -> set[str]:
    """Private names that a file uses and does not define."""
    used, own = set(), set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                module = getattr(node, "module", None) or ""
                used |= {part for alias in names for part in f"{module}.{alias.name}".split(".")}
            case ast.Attribute(attr=name, ctx=ast.Load()):
                used.add(name)
            case ast.Attribute(attr=name):
                own.add(name)
            case (
                ast.FunctionDef(name=name)
                | ast.ClassDef(name=name)
                | ast.Name(id=name, ctx=ast.Store())
            ):
                own.add(name)
            case ast.Call(
                func=ast.Name(id=called) | ast.Attribute(attr=called),
                args=[_, ast.Constant(value=str(name)), *_],
            ) if called in PATCHERS:
                used.add(name.rpartition(".")[2])
    return {name for name in used - own - FOREIGN if re.match("_[A-Za-z]", name)}


def test_the_rule_finds_every_way_to_a_private_name():
    """An import, an attribute, a patch; one's own names and double underscores are free."""
    assert private_reach("from a import _b") == private_reach("import a._b.c") == {"_b"}
    assert private_reach("import a\na._b()") == private_reach("patch.setattr(a, '_b', 1)") == {"_b"}
    assert (
        private_reach("class A:\n  _c = 1\n  def _b(self): self._d = self._b() + self._c + self._d")
        == set()
    )
    assert private_reach("import a\na.__name__") == set()


def test_private_names_are_used_at_home_only():
    sources = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in READERS}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        sources[path.relative_to(ROOT)] = re.sub("^%.*", "", code, flags=re.MULTILINE)
    reached = {path: private_reach(text) for path, text in sources.items()}
    assert {path: names for path, names in reached.items() if names} == {}


DIALECT = {"of", "one", "told", "found"}  # say nothing of what they hold


def test_names_say_what_they_hold():
    named = {}
    for path in READERS:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        room = path.relative_to(ROOT).parts
        if room[0] != "tests" and names & DIALECT:
            named[path.name] = names & DIALECT
    assert named == {}


LIGHT = (
    "import sys; {}; print([name for name in ('torch', 'pandas', 'numpy') if name in sys.modules])"
)


@pytest.mark.parametrize("what", ["import tvrkit", "import tvrkit.cli", "import tvrkit.settings"])
def test_light_modules_load_nothing_heavy(what):
    run = [sys.executable, "-c", LIGHT.format(what)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "[]\n"
