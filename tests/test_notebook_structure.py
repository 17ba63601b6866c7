"""The committed notebooks: what a reader sees, and what nbval compares, is there and fit to be
compared."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import nbformat
import papermill
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
PARAMETERS = {"recipe", "profile", "overrides", "run", "seed", "device"}
MAX_CELLS, MAX_LINES, MAX_WIDTH = 20, 12, 100
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|root|usr|tmp|work|var|opt|mnt|Users)/|[A-Z]:\\\\")
IGNORED = "nbval-ignore-output"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def tags(cell):
    return cell.metadata.get("tags", [])


def test_the_numbered_notebooks_are_there():
    names = [path.stem for path in NOTEBOOKS]
    assert [name[:2] for name in names] == sorted({name[:2] for name in names}), (
        "a number is used twice"
    )
    expected = {
        "01_data_preparation",
        "02_training",
        "03_evaluation",
        "04_hard_negatives",
        "05_attention_maps",
    }
    assert expected <= set(names)


def test_format_and_metadata_are_minimal(notebook):
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


def test_one_parameters_cell_with_what_reproduce_passes(notebook):
    tagged = [cell for cell in code(notebook) if "parameters" in tags(cell)]
    assert len(tagged) == 1
    assert tagged[0] is code(notebook)[0]
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(tagged[0].source).body
    }
    assert set(values) == PARAMETERS
    assert (values["profile"], values["run"], values["overrides"]) == ("smoke", "smoke", [])


def test_cells_are_few_and_short(notebook):
    assert len(code(notebook)) <= MAX_CELLS
    sources = [cell.source.splitlines() for cell in code(notebook)]
    assert [lines for lines in sources if len(lines) > MAX_LINES] == []
    assert [line for lines in sources for line in lines if len(line) > MAX_WIDTH] == []


def test_it_opens_with_question_answer_and_figure(notebook):
    opening = notebook.cells[0].source
    question, answer, figure = (
        opening.index(part) for part in ("**Question", "**Answer**", "**Figure to look at**")
    )
    assert question < answer < figure
    assert "reference run" in opening[answer:figure]
    assert len(re.findall(r"^- ", opening[answer:figure], re.MULTILINE)) == 3
    images = re.findall(r"!\[.+\]\((.+)\)", opening)
    assert images
    assert all((NOTEBOOKS[0].parent / image).exists() for image in images)
    headings = [line for cell in notebook.cells for line in cell.source.splitlines()]
    for anchor in re.findall(r"\]\(#(.+?)\)", opening):
        assert f"## {anchor.replace('-', ' ')}" in headings


def test_a_cell_that_trains_says_how_long_it_takes(notebook):
    for before, cell in pairwise(notebook.cells):
        if "runs.ensure(" in cell.source:
            assert "minutes" in before.source


def test_cells_ran_in_order_and_none_failed(notebook):
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output.output_type for output in outputs(notebook)}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs(notebook) if output.output_type == "stream"} <= {
        "stdout"
    }


def test_outputs_are_stored_and_most_cells_are_compared(notebook):
    images = [output for output in outputs(notebook) if "image/png" in output.get("data", {})]
    assert len(images) >= 2
    assert not any(
        "widget" in kind for output in outputs(notebook) for kind in output.get("data", {})
    )
    shown = [cell for cell in code(notebook) if cell.outputs]
    compared = [cell for cell in shown if IGNORED not in tags(cell)]
    assert len(compared) >= 3
    ignored = [cell for cell in code(notebook) if IGNORED in tags(cell)]
    assert len(ignored) <= len(code(notebook)) / 2


def test_no_path_of_the_machine_it_ran_on(notebook):
    texts = [cell.source for cell in notebook.cells]
    for output in outputs(notebook):
        parts = [output.get("text", ""), *output.get("data", {}).values()]
        texts += [part for part in parts if isinstance(part, str) and len(part) < 10**5]
    assert [text for text in texts if ABSOLUTE.search(text)] == []


def test_it_says_checks_and_saves(notebook):
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    source = "\n".join(cell.source for cell in code(notebook))
    assert prose[0].startswith("# ")
    assert "**Question" in prose[0]
    assert any("$" in text for text in prose), "an equation"
    for part in ("say", "**We see**", "**Why"):
        assert part in prose[-1]
    assert "assert " in source
    assert "figures.save(" in source


def test_papermill_finds_every_parameter(request, notebook):
    path = next(path for path in NOTEBOOKS if path.stem in request.node.name)
    assert set(papermill.inspect_notebook(str(path))) == PARAMETERS


def test_a_copy_of_the_notebooks_alone_says_what_it_lacks(tmp_path, monkeypatch):
    """Before anything is computed: notebook 09 reads costs that docs/scale.md has measured."""
    (notebooks := tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(notebooks)
    opening = code(nbformat.read(NOTEBOOKS[8], as_version=4))[1].source
    with pytest.raises(AssertionError, match=r"expected docs/scale\.md, of the kit's checkout"):
        exec(opening.removeprefix("%matplotlib inline"), {})
