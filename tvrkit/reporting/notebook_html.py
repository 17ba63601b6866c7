"""An executed notebook as a page that loads nothing: formulas are MathML, which browsers draw."""

import re

import nbformat
from jinja2 import pass_context
from jinja2.runtime import Context
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from tvrkit.html import render

SIZE = re.compile(r"\\[bB]igg?[lr]?(?=\\|[()\[\]|])")  # MathML's fences grow by themselves


def mathml(formula: str, display: str = "inline") -> str:
    """LaTeX as MathML; `display` "inline" or "block"."""
    return convert(SIZE.sub("", formula), display=display)


class _Renderer(IPythonRenderer):
    """nbconvert's Markdown, with formulas set at once."""

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return mathml(body)


class _Exporter(HTMLExporter):
    """The cells alone: nbconvert's whole pages load MathJax and require.js from the network."""

    @pass_context
    def markdown2html(self, context: Context, source: str) -> str:
        return MarkdownWithMath(renderer=_Renderer(escape=False)).render(source)


def notebook_html(notebook: nbformat.NotebookNode, title: str) -> str:
    """The page of an executed notebook."""
    body, _ = _Exporter(template_name="basic").from_notebook_node(notebook)
    body = re.sub(r"(?i)<meta\b", "&lt;meta", body)  # of a refresh no content security policy knows
    styles = HtmlFormatter(style="default").get_style_defs(".highlight")
    return render("notebook.html", title=title, body=Markup(body), styles=Markup(styles))
