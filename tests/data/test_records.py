"""Annotation files are read strictly, and an error names the file and the place."""

import pytest

from tests.data.layouts import put
from tvrkit.data.records import read_ids, read_json, read_json_lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', "x.json: expected JSON, got Expecting"),
        ('{"a": [], "a": []}', "x.json: expected JSON, got the key 'a' twice"),
        ('{"a": [NaN]}', "x.json: expected JSON, got NaN, which is no number"),
        ('{"a": ["b", 3]}', r"x.json: at a.1: Input should be a valid string, got 3"),
        ("[]", "x.json: at the top: Input should be a valid dictionary, got"),
        ("[" * 100_000, "x.json: expected JSON, got maximum recursion"),
        (b"\xff\xfe", "x.json: expected UTF-8 text, got byte 0xff at 0"),
        ("", "x.json: expected JSON, got Expecting value"),
    ],
)
def test_json_says_what_is_wrong(tmp_path, text, message):
    put(tmp_path, x__json=text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "x.json", dict[str, list[str]])


def test_lists_say_what_is_wrong(tmp_path):
    put(
        tmp_path,
        a__txt="x\r\ny\n\nx\n",
        b__csv="id\n1\n",
        c__csv="",
        d__csv="video_id,k\n1\n",
        e__jsonl='{"a": 1}\n{',
    )
    with pytest.raises(ValueError, match=r"a.txt: expected each id once, got 'x' 2 times"):
        read_ids(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"b.csv: expected columns video_id, missing video_id"):
        read_ids(tmp_path / "b.csv")
    with pytest.raises(ValueError, match=r"c.csv: expected a csv with a header"):
        read_ids(tmp_path / "c.csv")
    with pytest.raises(ValueError, match=r"d.csv line 2: expected 2 fields, got 1"):
        read_ids(tmp_path / "d.csv")
    with pytest.raises(ValueError, match=r"e.jsonl line 2: expected JSON"):
        read_json_lines(tmp_path / "e.jsonl", dict[str, int])
