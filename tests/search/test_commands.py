"""`tvrkit index` and `tvrkit search`: what they print, and one line for what is wrong."""

import io
import json
import time

import pytest

from tvrkit import cli

MODEL = ("--backbone", "tvrkit-tiny", "--pretrained", "tvrkit")


@pytest.fixture
def tvrkit(monkeypatch, tmp_path, capsys):
    """Run a command line; returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))

    def run(*arguments, stdin=""):
        monkeypatch.setattr("sys.argv", ["tvrkit", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "nowhere", "red"], "error: no index at nowhere: `tvrkit index` makes it"),
        (["search", "nowhere"], "error: expected one query: words, --video FILE or --image FILE"),
        (["search", "nowhere", "red", "--video", "a"], "error: expected one query"),
        (["index", ".", "--out", "i"], "error: expected a run (RUN/RECIPE/seedK) or a backbone"),
        (
            ["index", ".", "--out", "i", "--run", "a/b/seed0"],
            "error: a/b/seed0: no such checkpoint: expected RUN/RECIPE/seedK",
        ),
        (
            ["index", "nowhere", "--out", "i", "--backbone", "tvrkit-tiny"],
            "error: no folder of videos at nowhere",
        ),
        (["index", ".", "--out", "i", "--backbone", "x"], "error: unknown backbone 'x'"),
    ],
)
def test_what_is_wrong_is_one_line(tvrkit, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = tvrkit(*arguments)
    said = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 1
    assert len(said) == 1
    assert said[0].startswith(message)


def test_index_then_search(tvrkit, videos, tmp_path):
    (videos / "two\nlines.mp4").write_text("no video")
    place, page = tmp_path / "index", tmp_path / "page.html"
    code, out, _ = tvrkit("index", videos, "--out", place, *MODEL)
    assert code == 0
    assert "two\\nlines.mp4: " in out
    assert out.splitlines()[-1] == f"4 segments of 5 files in {place}"
    code, out, _ = tvrkit("search", place, "a red circle", "-k", 2, "--html", page)
    assert code == 0
    assert len(out.splitlines()) == 2
    assert "a red circle" in page.read_text()
    _, out, _ = tvrkit("search", place, "-", "--json", stdin="a red circle\na blue square\n")
    found = [json.loads(line) for line in out.splitlines()]
    assert [row["query"] for row in found] == ["a red circle", "a blue square"]
    assert [hit["score"] for hit in found[0]["hits"]] == sorted(
        (hit["score"] for hit in found[0]["hits"]), reverse=True
    )
    _, out, _ = tvrkit("search", place, "-", "--recall", stdin="a red circle\na blue square\n")
    assert out.splitlines()[0].split() == ["length", "recall@1", "recall@10"]
    code, _, err = tvrkit("search", place, "red", "--where", "drop")
    assert (code, err.count("error: filter 'drop'")) == (1, 1)
    code, out, err = tvrkit("search", place, "red", "--min-score", 2)
    assert (code, out.strip()) == (0, "")
    assert "no segment passes the filter and the least score" in err
    first = sorted(videos.glob("*.mp4"))[0]
    _, out, _ = tvrkit("search", place, "--video", first, "-k", 1, "--recall")
    assert out.splitlines()[0].split() == ["length", "recall@1"]
    _, out, _ = tvrkit("search", place, "--video", first, "-k", 1)
    assert first.name in out


def test_watch_keeps_the_index_current_until_it_is_stopped(tvrkit, videos, tmp_path, monkeypatch):
    first, *others = sorted(videos.iterdir())
    aside, place, wait = tmp_path / "aside.mp4", tmp_path / "index", time.sleep
    first.rename(aside)
    between = [
        lambda: aside.rename(first),
        lambda: None,
        others[0].unlink,
        lambda: others[1].write_text("no video"),
    ]

    def sleep(seconds):
        if seconds != 7.5:
            return wait(seconds)
        if not between:
            raise KeyboardInterrupt
        return between.pop(0)()

    monkeypatch.setattr("time.sleep", sleep)
    code, out, err = tvrkit("index", videos, "--out", place, *MODEL, "--watch", 7.5)
    assert code == 130
    assert "interrupted; what is finished is kept" in err
    said = [line for line in out.splitlines() if " segments of " in line]
    assert said == [
        f"{segments} segments of {files} files in {place}"
        for segments, files in ((3, 3), (4, 4), (3, 3), (2, 3))
    ]
    assert f"failed {others[1]}: " in out
