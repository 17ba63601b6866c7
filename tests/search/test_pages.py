"""Names and captions are escaped in every form of an answer."""

import json

import pandas as pd
import pytest

from tvrkit.search import pages

EVIL = "<script>alert('x')</script>\n\x1b[31m😀.mp4"
NAME = b"/v/a b\xff'\".mp4"


@pytest.fixture
def found():
    row = {"score": 0.5, "unrelated": 0.2, "path": EVIL, "start": 1.0, "end": 3.5}
    table = pd.DataFrame(
        [
            row
            | {
                "copies": ["a.mp4 0.0 s"],
                "file": "ab",
                "segment": 0,
                "name": NAME,
                "strip": b"jpeg",
                "features": b"",
            }
        ]
    )
    table.attrs = {"query": "<b>red</b>", "matches": False, "notes": ["cut"]}
    return table


def test_a_hit_is_one_line(found):
    line = pages.to_lines(found)
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert line.startswith("0.500  1.0-3.5 s  <script>")
    assert line.endswith("😀.mp4  (and 1 near-duplicates)")
    assert pages.notes(found) == ["cut", pages.NOTHING]


def test_json_is_one_line_that_reads_back(found):
    text = pages.to_json(found)
    assert "\n" not in text
    read = json.loads(text)
    assert (read["query"], read["matches"]) == ("<b>red</b>", False)
    assert read["hits"][0]["path"] == EVIL


def test_the_page_escapes_and_links_to_the_time(found):
    page = pages.render([found])
    assert "<script>alert" not in page
    assert "<b>red</b>" not in page
    assert "&lt;b&gt;red" in page
    assert 'href="file:///v/a%20b%FF%27%22.mp4#t=1.00,3.50"' in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_server_plays_the_video_at_its_time(found):
    page = pages.render([found], "hits.html", served="/clip/0/")
    assert 'src="/clip/0/ab#t=1.00,3.50"' in page
    assert "file://" not in page
    assert "<script>alert" not in page
