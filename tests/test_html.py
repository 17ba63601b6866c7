"""Texts are escaped, names must be there, bytes become addresses."""

import jinja2
import pytest

from tvrkit import html


@pytest.fixture
def template(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "ASSETS", tmp_path)

    def write(text):
        (tmp_path / "page.html").write_text(text)
        return "page.html"

    return write


def test_texts_are_escaped(template):
    assert html.render(template("<p>{{ it }}"), it="<b>'\"") == "<p>&lt;b&gt;&#39;&#34;"


def test_a_missing_name_is_an_error(template):
    with pytest.raises(jinja2.UndefinedError, match="it"):
        html.render(template("{{ it }}"))


def test_bytes_become_addresses(template):
    page = template("{{ picture | base64 }} {{ name | quote }}")
    assert html.render(page, picture=b"\xff\xd8", name=b"a b\xff'.mp4") == "/9g= a%20b%FF%27.mp4"
