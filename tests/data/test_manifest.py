import json
import shutil

import pandas as pd
import pytest

from tests.data.video_files import write_audio, write_video
from tvrkit import files as kit_files
from tvrkit.data import extract as frames
from tvrkit.data.decoders import FrameSettings
from tvrkit.data.manifest import Manifest, coverage, write

COUNTS = {"good": 9, "short": 3, "other": 9}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "mine"
    files = {
        name: write_video(root.parent / f"{name}.mp4", count=count)
        for name, count in COUNTS.items()
    }
    cut = write_video(
        root.parent / "cut.mp4", height=128, width=192, flags={"movflags": "faststart"}
    )
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    files |= {"cut": cut, "broken": write_audio(root.parent / "broken.mp4"), "lost": None}
    videos = frames.extract(files, root / "frames.lmdb", FrameSettings(4))
    videos["split"] = ["test", "test", "train", "test", "test", "test"]
    rows = [
        {
            "caption_id": f"{name}-{language}-{number}",
            "video_id": name,
            "caption": f"{name} {number} \u2028 猫",
            "language": language,
            "split": "train" if name == "other" else "test",
        }
        for name in ("other", "short", "good", "lost", "broken")
        for language in ("en", "zh")
        for number in range(2)
    ]
    return root, pd.DataFrame(rows), videos


@pytest.fixture
def prepared(tables, tmp_path):
    root, captions, videos = tables
    shutil.copytree(root / "frames.lmdb", tmp_path / "mine" / "frames.lmdb")
    return write(tmp_path / "mine", captions, videos, {"protocol": "mine/all"})


def test_what_is_written_is_read(prepared, tables):
    _, captions, videos = tables
    opened = Manifest.open(prepared.root)
    pd.testing.assert_frame_equal(opened.captions, captions)
    pd.testing.assert_frame_equal(opened.videos, videos)
    assert opened.card["protocol"] == "mine/all"
    assert opened.card["counts"] == {
        "test": {"videos": 5, "ok": 3, "captions": 16},
        "train": {"videos": 1, "ok": 1, "captions": 4},
    }
    assert opened.card["store"] == opened.frames.settings
    assert opened.frames.read("good", [0, 3]).shape == (2, 64, 96, 3)
    assert not list(prepared.root.glob(".*.tmp"))


def test_a_split_has_the_videos_with_frames_and_names_the_others(prepared):
    split = prepared.split("test", "zh")
    assert split.video_ids == ["good", "short"]  # the order of videos.jsonl
    assert split.captions["caption_id"].tolist() == [
        "short-zh-0",
        "short-zh-1",
        "good-zh-0",
        "good-zh-1",
    ]
    assert split.captions.index.tolist() == [0, 1, 2, 3]
    assert split.video_of_caption.tolist() == [1, 1, 0, 0]
    assert split.missing == ["broken", "lost"]


def test_coverage_names_what_is_not_there(prepared):
    report = coverage(prepared.videos).set_index("split").loc["test"].to_dict()
    assert report == {
        "videos": 5,
        "present": 3,
        "missing": ["lost"],
        "broken": ["broken"],
        "damaged": ["cut"],
        "too_short": ["short"],
    }


def test_unknown_splits_and_languages_list_the_choices(prepared):
    with pytest.raises(ValueError, match="unknown split 'val': expected one of test, train"):
        prepared.split("val")
    with pytest.raises(ValueError, match="unknown language 'de': expected one of en, zh"):
        prepared.split("test", "de")
    prepared.videos["status"] = "failed"
    with pytest.raises(
        ValueError, match="videos of split 'test' with frames and a caption in 'en', got none"
    ):
        prepared.split("test")


def test_missing_and_half_built_folders_name_the_command(prepared, tmp_path):
    command = "see data/README.md for the `tvrkit data prepare` command"
    with pytest.raises(FileNotFoundError, match=f"no prepared data set at .*: {command}"):
        Manifest.open(tmp_path / "nothing")
    (prepared.root / "card.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"half-built, it has no card.json: {command}"):
        Manifest.open(prepared.root)


def test_a_stop_while_writing_is_never_taken_for_whole(prepared, tables, monkeypatch):
    _, captions, videos = tables
    saved, calls = kit_files.write_json_lines, []

    def stop(path, rows):
        calls.append(path.name)
        if path.name == "videos.jsonl":
            raise KeyboardInterrupt
        saved(path, rows)

    monkeypatch.setattr(kit_files, "write_json_lines", stop)
    with pytest.raises(KeyboardInterrupt):
        write(prepared.root, captions.iloc[:4], videos, {})
    with pytest.raises(FileNotFoundError, match=r"half-built, it has no card.json"):
        Manifest.open(prepared.root)
    assert calls == ["captions.jsonl", "videos.jsonl"]


def test_parts_that_do_not_belong_together_are_an_error(prepared, tables):
    root, *_ = tables
    lines = (prepared.root / "captions.jsonl").read_text().split("\n")
    (prepared.root / "captions.jsonl").write_text("\n".join(lines[:-2]))
    with pytest.raises(
        ValueError, match=r"expected counts .*'captions': 16.* card.json says, got .*'captions': 15"
    ):
        Manifest.open(prepared.root)
    other = json.dumps(json.loads(lines[0]) | {"caption": "other words"})
    (prepared.root / "captions.jsonl").write_text("\n".join([other, *lines[1:]]))
    with pytest.raises(ValueError, match=r"expected captions_hash .*, as card.json says"):
        Manifest.open(prepared.root)
    (prepared.root / "captions.jsonl").write_text("\n".join([lines[0], lines[1][:-1], *lines[2:]]))
    with pytest.raises(ValueError, match=r"captions.jsonl line 2: expected JSON, got Expecting"):
        Manifest.open(prepared.root)
    (prepared.root / "captions.jsonl").write_text("\n".join(lines))
    shutil.rmtree(prepared.root / "frames.lmdb")
    files = {"good": root.parent / "good.mp4"}
    frames.extract(files, prepared.root / "frames.lmdb", FrameSettings(2))
    with pytest.raises(
        ValueError, match=r"expected store .*'frames': 4.* card.json says, got .*'frames': 2"
    ):
        Manifest.open(prepared.root)


def test_numbers_as_ids_stay_text(prepared, tables):
    _, captions, videos = tables
    names = {"good": "0012", "short": "1e5", "other": "null"}
    opened = write(
        prepared.root,
        captions.replace({"video_id": names}),
        videos.replace({"video_id": names}),
        {},
    )
    assert opened.split("test").video_ids == ["0012", "1e5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c, v: (c.drop(columns="language"), v),
            r"captions.jsonl: at 0\.language: Field required",
        ),
        (lambda c, v: (c, v.drop(columns=["bytes"])), r"videos.jsonl: at 0\.bytes: Field required"),
        (
            lambda c, v: (pd.concat([c, c.iloc[:2]]), v),
            "captions: expected each id once, got 'other-en-0' 2 times",
        ),
        (
            lambda c, v: (c, pd.concat([v, v.iloc[:1]])),
            "videos: expected each id once, got 'good' 2 times",
        ),
        (
            lambda c, v: (c.replace({"good": "new"}), v),
            r"videos that have a row, got 1 without: \['new'\]",
        ),
        (lambda c, v: (c, v.replace({"good": "../good"})), "unusable video id '../good'"),
    ],
)
def test_unusable_tables_are_refused_before_anything_is_written(prepared, tables, change, message):
    before = {path.name: path.read_bytes() for path in prepared.root.glob("*.json*")}
    with pytest.raises(ValueError, match=message):
        write(prepared.root, *change(*tables[1:]), {})
    assert {path.name: path.read_bytes() for path in prepared.root.glob("*.json*")} == before


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("videos", {"video_id": "../../../tmp/x"}, "unusable video id '../../../tmp/x'"),
        ("videos", {"video_id": "a\x1b[2J"}, r"unusable video id 'a\\x1b\[2J'"),
        ("videos", {"video_id": "short"}, "videos: expected each id once, got 'short' 2 times"),
        ("videos", {"video_id": "new"}, "videos that have a row, got 1 without"),
        ("videos", {"frames": "9"}, r"videos.jsonl: at \d+\.frames: .*integer, got '9'"),
        ("videos", {"frames": -1}, r"videos.jsonl: at \d+\.frames: .*equal to 0, got -1"),
        ("videos", {"status": None}, r"videos.jsonl: at \d+\.status: .*'ok' or 'failed'"),
        (
            "captions",
            {"caption_id": "good-en-0"},
            "captions: expected each id once, got 'good-en-0' 2 times",
        ),
        ("captions", {"caption": 3}, r"captions.jsonl: at \d+\.caption: .*string, got 3"),
        ("captions", {"video_id": "../x"}, r"videos that have a row, got 1 without: \['\.\./x'\]"),
        ("captions", {"caption": "\x1b[2J"}, "expected captions_hash .*, as card.json says"),
        ("videos", {"fps": 7.0}, r"as they were written, got another videos.jsonl"),
    ],
)
def test_a_folder_of_a_stranger_is_checked_as_what_is_written(prepared, name, change, message):
    path = prepared.root / f"{name}.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    at = next(number for number, line in enumerate(lines) if '"other' in line)
    lines[at] = json.dumps(json.loads(lines[at]) | change)
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Manifest.open(prepared.root)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("change", [{"protocol": "other"}, {"made_by": "me"}, {"more": 1}])
def test_a_changed_card_is_told(prepared, change):
    path = prepared.root / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"as they were written, got another .*card.json"):
        Manifest.open(prepared.root)


@pytest.mark.parametrize("name", ["sha256", "files"])
def test_a_flipped_bit_in_the_name_of_a_hash_does_not_switch_it_off(prepared, name):
    path = prepared.root / "card.json"
    path.write_text(path.read_text().replace(f'"{name}": ', f'"~{name[1:]}": '))
    with pytest.raises(ValueError, match=r"as they were written, got another .*card.json"):
        Manifest.open(prepared.root)


def test_frames_are_compared_with_the_table(prepared, tables):
    """A store made again of other videos, and whole in itself."""
    root, *_ = tables
    shutil.rmtree(prepared.root / "frames.lmdb")
    files = dict.fromkeys(["good", "short"], root.parent / "short.mp4")
    frames.extract(files, prepared.root / "frames.lmdb", FrameSettings(4))
    opened = Manifest.open(prepared.root).frames
    assert opened.read("short", [0]).shape == (1, 64, 96, 3)
    with pytest.raises(ValueError, match="'good' is broken: not as it was stored"):
        opened.read("good", [0])


def test_a_set_of_an_earlier_version_is_read(prepared):
    """Without hashes of its frames and its card."""
    path, card = prepared.root / "videos.jsonl", prepared.root / "card.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kit_files.write_json_lines(
        path, [{k: v for k, v in row.items() if k != "hash"} for row in rows]
    )
    old = {k: v for k, v in prepared.card.items() if k not in ("sha256", "files")}
    card.write_text(json.dumps(old))
    opened = Manifest.open(prepared.root)
    assert opened.frames.hashes is None
    assert opened.frames.read("good", [0, 3]).shape == (2, 64, 96, 3)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "\xff"])
def test_a_card_of_anything_is_one_line(prepared, text):
    (prepared.root / "card.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"card.json") as caught:
        Manifest.open(prepared.root)
    assert "\n" not in str(caught.value)


def test_lines_are_one_json_object_each(prepared):
    text = (prepared.root / "captions.jsonl").read_text(encoding="utf-8")
    assert text.count("\n") == len(prepared.captions)
    assert json.loads(text.split("\n")[0])["caption"] == "other 0 \u2028 猫"
