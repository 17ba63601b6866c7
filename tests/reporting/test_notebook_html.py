"""Executed notebooks as pages: formulas are set, nothing is loaded from the network."""

import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tvrkit.reporting.notebook_html import mathml, notebook_html

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def loads(page):
    """What a browser would fetch, or run, to show the page."""
    sources = [tag.get("src", "") for tag in page(["script", "img", "iframe", "embed"])]
    sources += [tag.get("href", "") for tag in page("link")]
    sources += re.findall(r"@import|url\(", "".join(style.text for style in page("style")))
    return [source for source in sources if not source.startswith("data:")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_becomes_a_page_that_loads_nothing(path):
    notebook = nbformat.read(path, as_version=4)
    page = BeautifulSoup(notebook_html(notebook, path.stem), "html.parser")
    assert [source for source in loads(page) if not source.startswith("../reports/")] == []
    assert page.h1.text.startswith(notebook.cells[0].source.splitlines()[0].lstrip("# "))
    assert page("math")
    assert not [formula for formula in page("math") if "\\" in formula.text], "a command was left"
    assert len(page.select("div.code_cell")) == sum(c.cell_type == "code" for c in notebook.cells)


def test_formulas_in_text_are_set_and_dollars_in_code_stay():
    cells = [
        new_markdown_cell(
            "The loss $a_{i} < b$, and\n\n$$\\sum_j \\tfrac12 x_j$$\n\n`$HOME` costs"
        ),
        new_code_cell("price = '$5 and $6'"),
    ]
    page = BeautifulSoup(notebook_html(new_notebook(cells=cells), "prices"), "html.parser")
    inline, block = page("math")
    assert (inline["display"], block["display"]) == ("inline", "block")
    assert inline.text == "ai<b"
    assert block.find("mfrac")
    assert [code.text for code in page("code")] == ["$HOME"]
    assert "'$5 and $6'" in page.select_one("div.highlight").text
    assert page.title.text == "tvrkit · prices"


def test_no_output_leads_the_browser_elsewhere():
    """A refresh by <meta> is what no content security policy forbids."""
    refresh = "<MeTa http-equiv=refresh content='0;url=http://example.org/'>"
    output = new_output("display_data", data={"text/html": f"<p>{refresh}</p>"})
    cells = [new_markdown_cell(refresh), new_code_cell("1", outputs=[output])]
    page = BeautifulSoup(notebook_html(new_notebook(cells=cells), "m"), "html.parser")
    assert not page.find_all("meta", content=re.compile("^0"))
    assert "<MeTa" not in notebook_html(new_notebook(cells=cells), "m")


def test_sizes_of_fences_are_left_to_the_browser():
    assert mathml(r"\big\lfloor x \big\rfloor") == mathml(r"\lfloor x \rfloor")
