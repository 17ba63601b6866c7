"""Your own videos, as data/README.md says it."""

import re
import shlex
from pathlib import Path

import pytest

from tests.data.video_files import write_video
from tvrkit import cli
from tvrkit.data.manifest import Manifest
from tvrkit.data.own import read_own
from tvrkit.training import runs

pytestmark = pytest.mark.slow

README = Path(__file__).parents[2] / "data" / "README.md"


def section() -> tuple[str, list[str]]:
    """The table and the commands of "Your own"."""
    text = README.read_text(encoding="utf-8").partition("## Your own")[2]
    table, commands = (
        re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("csv", "sh")
    )
    return table, commands.strip().splitlines()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with the README's table and made videos, in which its commands run: the kit's own
    is another."""
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.csv").write_text(section()[0], encoding="utf-8")
    for file in read_own(tmp_path / "captions.csv")["file"].unique():
        path = tmp_path / "videos" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, count=16, codec="mpeg4" if path.suffix == ".avi" else "libx264")
    return tmp_path


def run(monkeypatch, command: str) -> int:
    monkeypatch.setattr("sys.argv", shlex.split(command))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code or 0


def test_the_commands_of_the_readme_prepare_train_and_evaluate(home, monkeypatch):
    prepare, train = section()[1]
    assert run(monkeypatch, prepare) == 0
    made = Manifest.open(home / "home" / "data" / "own")
    assert made.card["counts"] == {
        "test": {"videos": 2, "ok": 2, "captions": 2},
        "train": {"videos": 2, "ok": 2, "captions": 3},
    }
    ids = ["holiday__clip1.mp4", "work__clip1.mp4", "work__clip1.avi", "cat.mp4"]
    assert made.videos["video_id"].tolist() == ids
    assert made.captions["caption_id"].tolist()[:2] == [f"{ids[0]}-en0", f"{ids[0]}-en1"]
    assert run(monkeypatch, train) == 0
    (done,) = runs.find("mine")
    assert done.metrics["videos"] == 2


def test_a_set_that_no_recipe_would_find_is_told_so(home, monkeypatch, capsys):
    prepare = section()[1][0]
    assert run(monkeypatch, f"{prepare} --out data/mine") == 0
    assert f"recipes look for data sets in {home / 'home' / 'data'}" in capsys.readouterr().out
    assert run(monkeypatch, f"{prepare} --out home/data/mine") == 0
    assert "recipes look" not in capsys.readouterr().out


def test_the_decoder_that_is_asked_for_reads_it(home, monkeypatch):
    assert run(monkeypatch, f"{section()[1][0]} --decoder pyav") == 0
    card = Manifest.open(home / "home" / "data" / "own").card
    assert card["store"]["decoder"].startswith("PyAV")
    assert [*card["decoders"]] == ["pyav: asked for"]


def test_no_split_no_loss(home, monkeypatch, capsys):
    (home / "lines.jsonl").write_text('{"caption": "a cat", "file": "cat.mp4"}\n')
    assert (
        run(monkeypatch, "tvrkit data prepare own lines.jsonl --videos videos --language zh") == 0
    )
    split = Manifest.open(home / "home" / "data" / "own").split("test", "zh")
    assert split.captions["caption"].tolist() == ["a cat"]
    assert split.complete
    assert "test: 1 of 1 videos" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("caption,video\na,b\n", "captions.csv: expected columns caption, file, got no file"),
        ("caption,file\n", "captions.csv: expected a row per caption, got none"),
        (
            "caption,file,split\na,cat.mp4,dev\n",
            "captions.csv: at 0.split: Input should be 'train', 'val' or 'test', got 'dev'",
        ),
        (
            "caption,file,language\na,cat.mp4,de\n",
            "captions.csv: at 0.language: Input should be 'en' or 'zh', got 'de'",
        ),
        ("caption,file\na,cat.mp4\n ,cat.mp4\n", "captions.csv: at 1.caption: "),
        (
            "caption,file,split\na,cat.mp4,test\nb,cat.mp4,train\n",
            "cat.mp4: expected a video in one",
        ),
        (
            "caption,file\na,b/c.mp4\nb,b__c.mp4\n",
            "b__c.mp4: expected a video in one split, under one",
        ),
        *(
            (
                f"caption,file\na,cat.mp4\nb,{file}\n",
                f"captions.csv: expected relative paths without '..', got '{file}'",
            )
            for file in ("../cat.mp4", "work/../../cat.mp4", "/etc/passwd")
        ),
        (
            "caption,file\na,dog.mp4\n",
            "none of the 1 files of captions.csv is in videos, such as dog",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_said(home, monkeypatch, capsys, table, message):
    (home / "captions.csv").write_text(table)
    assert run(monkeypatch, "tvrkit data prepare own captions.csv --videos videos") == 1
    assert message in capsys.readouterr().err
    assert not (home / "home" / "data").exists()
