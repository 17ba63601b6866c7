"""`make bench` finds every benchmark, and its table holds what was measured."""

import ast
import json
from pathlib import Path

from tests.benchmarks import table

ROOT = Path(__file__).parent
MEASURED = {
    "machine_info": {"node": "somebody's", "cpu": {"brand_raw": "A processor"}},
    "benchmarks": [
        {"extra_info": {"what": "this", "plain_s": 1.234, "fast_s": 0.0101, "ratio": 122.18}},
        {"extra_info": {}},
        {"extra_info": {"what": "clips", "rate": 249.7}},
    ],
}


def test_no_benchmark_has_a_name_that_is_not_looked_for():
    for path in sorted((ROOT / "benchmarks").glob("bench_*.py")):
        nodes = ast.parse(path.read_text(encoding="utf-8")).body
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
        timed = [
            node.name
            for node in functions
            if {"benchmark", "against"} & {argument.arg for argument in node.args.args}
        ]
        assert timed, f"{path.name} measures nothing"
        assert [name for name in timed if not name.startswith("bench_")] == []
    makefile = (ROOT.parent / "Makefile").read_text(encoding="utf-8")
    assert "python_files='bench_*.py'" in makefile
    assert "python_functions='bench_*'" in makefile


def test_the_table_is_written_between_its_marks_and_nothing_of_the_machine_is_kept(tmp_path):
    measured, page = tmp_path / "found.json", tmp_path / "page.md"
    measured.write_text(json.dumps(MEASURED), encoding="utf-8")
    page.write_text(f"before\n{table.BEGIN}old\n{table.END}after\n", encoding="utf-8")
    for _ in range(2):  # what was kept is read again
        table.main(str(measured), str(page))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| this | 1.23 | 0.0101 | 122.2 |" in text
    assert "\nclips: 250 a second, on the clock.\n" in text
    assert text.count("A processor") == 1
    kept = measured.read_text(encoding="utf-8")
    assert "somebody" not in kept
    assert len(json.loads(kept)["rows"]) == 1


def test_the_page_has_the_marks():
    text = (ROOT.parent / "docs" / "performance.md").read_text(encoding="utf-8")
    assert text.index(table.BEGIN) < text.index(table.END)
