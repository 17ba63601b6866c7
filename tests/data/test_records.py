"""Annotation files are read strictly, and an error names the file and the place."""

import pickle
from collections import OrderedDict
from pathlib import Path

import pytest

from tests.data.layouts import put
from tvrkit.data.records import read_ids, read_json, read_json_lines, read_pickle


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', "x.json: expected JSON, got Expecting"),
        ('{"a": [], "a": []}', "x.json: .* an object: expected each key once, got 'a' 2 times"),
        ('{"a": [NaN]}', "x.json: expected JSON, got NaN, which is no number"),
        ('{"a": ["b", 3]}', r"x.json: at a.1: Input should be a valid string, got 3"),
        ("[]", "x.json: at the top: Input should be a valid dictionary, got"),
        ("[" * 100_000, "x.json: expected JSON, got (maximum recursion|Stack overflow)"),
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
    with pytest.raises(ValueError, match=r"b.csv: expected columns video_id, got no video_id"):
        read_ids(tmp_path / "b.csv")
    with pytest.raises(ValueError, match=r"c.csv: expected a csv with a header"):
        read_ids(tmp_path / "c.csv")
    with pytest.raises(ValueError, match=r"d.csv line 2: expected 2 fields, got 1"):
        read_ids(tmp_path / "d.csv")
    with pytest.raises(ValueError, match=r"e.jsonl line 2: expected JSON"):
        read_json_lines(tmp_path / "e.jsonl", dict[str, int])


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("tvrkit-was-here"),))


@pytest.mark.parametrize(
    "value",
    [Evil(), {"a": Evil()}, {"a": OrderedDict()}, {"a": [[len]]}, {"a": [["b", 1]]}, {"a": {1}}],
)
def test_a_pickle_runs_no_code(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, raw__pkl=pickle.dumps(value))
    with pytest.raises(ValueError, match=r"raw.pkl: (expected a pickle of builtin types|at a)"):
        read_pickle(tmp_path / "raw.pkl", dict[str, list[list[str]]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw.pkl"]


def nested(levels=60):
    """A tuple of twice the same tuple of twice ...: 2^60 leaves in 300 bytes."""
    value = ("x",)
    for _ in range(levels):
        value = (value, value)
    return value


class Called:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


def as_key(protocol):
    """The pickle of {nested(): 1}, which Python itself could not make: it would hash the key."""
    return pickle.dumps(nested(), protocol)[:-1].join([b"(", b"I1\nd."])


BOMBS = {
    "written out": lambda protocol: pickle.dumps(nested(), protocol),
    "in a field": lambda protocol: pickle.dumps({"a": nested()}, protocol),
    "hashed as a key": as_key,
    "REDUCE to text": lambda protocol: pickle.dumps(Called(str, nested()), protocol),
    "REDUCE to a number": lambda protocol: pickle.dumps(Called(int, "9" * 400, 36), protocol),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_small_pickle_of_a_large_value_is_refused_at_once(tmp_path, bomb, protocol):
    path = tmp_path / "raw.pkl"
    path.write_bytes(BOMBS[bomb](protocol))
    assert path.stat().st_size < 2000
    with pytest.raises(ValueError, match=r"raw.pkl: expected a pickle of builtin types") as caught:
        read_pickle(path, dict[str, list[list[str]]])  # for ever, if it were unfolded
    assert len(str(caught.value)) < 300


def test_text_that_is_used_twice_is_read_and_other_things_are_not(tmp_path):
    word, names = "dog", ["cat"]
    put(tmp_path, a__pkl=pickle.dumps({"a": [[word, word]]}), b__pkl=pickle.dumps([names, names]))
    assert read_pickle(tmp_path / "a.pkl", dict[str, list[list[str]]]) == {"a": [["dog", "dog"]]}
    with pytest.raises(ValueError, match="a container in two places at byte"):
        read_pickle(tmp_path / "b.pkl", list[list[str]])
