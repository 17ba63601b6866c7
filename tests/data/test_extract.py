import json
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
import warnings
from dataclasses import replace
from urllib.parse import unquote_to_bytes

import av
import lmdb
import numpy as np
import pandas as pd
import pytest
import simplejpeg
from filelock import FileLock

from tests.data.video_files import indices, write_audio, write_video
from tvrkit.data import extract as frames
from tvrkit.data.decoders import DecodePool, FrameSettings, decoder_versions
from tvrkit.data.extract import NO_FILE, extract, find_videos
from tvrkit.data.prepare import extract_folder
from tvrkit.data.store import FrameStore, release

pytestmark = pytest.mark.slow

SMALL = FrameSettings(4, 32)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(12):
        write_video(folder / f"video{number}.mp4", count=4 + number)
    write_audio(folder / "audio.mp4")
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture(scope="module")
def store(videos, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "frames.lmdb"
    extract(find_videos(videos), path, SMALL)
    return path


def content(path):
    """All entries of a store; of a copy, as LMDB opens a file once per process."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path / "data.mdb", folder)
        with (
            lmdb.open(folder, readonly=True, lock=False) as environment,
            environment.begin() as transaction,
        ):
            return {bytes(key): bytes(value) for key, value in transaction.cursor()}


def test_every_video_gets_a_row_and_good_ones_their_frames(videos, tmp_path):
    files = {**find_videos(videos), "lost": None, "gone": videos / "gone.mp4"}
    rows = extract(files, tmp_path / "frames.lmdb", SMALL).set_index("video_id")
    assert list(rows.index) == list(files)
    failed = rows[rows["status"] == "failed"]["reason"].to_dict()
    assert failed == {
        "audio": "no video stream, only audio",
        "empty": "empty file",
        "lost": NO_FILE,
        "gone": NO_FILE,
    }
    assert (rows["requested"] == 4).all()
    assert rows.loc["video3", ["frames", "width", "height", "fps", "decoder"]].tolist() == [
        4,
        96,
        64,
        30.0,
        "decord",
    ]
    assert rows.loc["video3", "bytes"] == (videos / "video3.mp4").stat().st_size
    store = FrameStore(tmp_path / "frames.lmdb")
    assert store.video_ids() == sorted(f"video{number}" for number in range(12))
    assert store.count("video3") == 4
    assert store.count("audio") == 0
    assert store.verify() == []
    assert store.settings == {
        "window": None,
        "frames": 4,
        "short_side": 32,
        "sampling": "uniform",
        "quality": 90,
        "chroma": "444",
        "decoder": decoder_versions(),
    }
    assert not (tmp_path / "frames.lmdb.partial").exists()


@pytest.mark.parametrize("chroma", ["444", "420"])
def test_colours_are_stored_as_asked(chroma, videos, tmp_path):
    """And a store from before there was a choice, which has whole ones, is gone on with."""
    files, path = {"a": videos / "video0.mp4"}, tmp_path / "frames.lmdb"
    settings = replace(SMALL, chroma=chroma)
    extract(files, path, settings)
    jpeg = content(path)[b"a/000000"]
    assert simplejpeg.decode_jpeg_header(jpeg)[3] == chroma
    release(path)
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        built_with = json.loads(transaction.get(b"\0settings"))
        del built_with["chroma"]
        transaction.put(b"\0settings", json.dumps(built_with).encode())
    if chroma == "444":
        assert extract(files, path, settings)["frames"].tolist() == [4]
    else:
        with pytest.raises(ValueError, match=r"built with \{'chroma': .*, got \{'chroma': '444'\}"):
            extract(files, path, settings)


def test_the_decoder_is_a_setting_that_store_and_rows_tell(videos, tmp_path):
    files, path = {"a": videos / "video0.mp4"}, tmp_path / "frames.lmdb"
    rows = extract(files, path, replace(SMALL, decoder="pyav"))
    assert rows["decoder"].tolist() == ["pyav"]
    assert FrameStore(path).settings["decoder"].startswith(f"PyAV {av.__version__} (libavcodec ")
    assert rows["why"].tolist() == ["asked for"]


def test_frames_are_those_of_the_video(store):
    read = FrameStore(store).read("video8", [0, 1, 2, 3])  # of 12: the middles of four segments
    assert read.shape == (4, 32, 48, 3)
    assert indices(read) == [1, 4, 7, 10]
    assert indices(FrameStore(store).read("video8", [3, 0])) == [10, 1]


def test_keys_are_as_documented(videos, tmp_path):
    files = {"video0": videos / "video0.mp4", "7": videos / "video1.mp4"}
    rows = extract(files, tmp_path / "kit", SMALL).set_index("video_id")
    assert {b"video0/000000", b"7/000003"} < content(tmp_path / "kit").keys()
    read = FrameStore(tmp_path / "kit")
    assert (read.layout, read.video_ids(), read.verify()) == ("kit", ["7", "video0"], [])
    assert rows["hash"].to_dict() == {name: read.hash(name) for name in files}
    assert {len(known) for known in rows["hash"]} == {4 * 16}


def test_what_was_stored_without_hashes_is_read_again(videos, tmp_path):
    """A store of an earlier version."""
    files, path = {"a": videos / "video0.mp4", "b": videos / "video1.mp4"}, tmp_path / "kit"
    rows = extract(files, path, SMALL)
    release(path)
    with (
        lmdb.open(str(path), map_size=1 << 28) as environment,
        environment.begin(write=True) as out,
    ):
        row = json.loads(out.get(b"\0row/a"))
        del row["hash"]
        out.put(b"\0row/a", json.dumps(row).encode())
    assert FrameStore(path).read("a", [0]).shape == (1, 32, 48, 3)
    pd.testing.assert_frame_equal(extract(files, path, SMALL), rows)
    assert content(path)[b"\0row/a"] != json.dumps(row).encode()


def test_a_second_call_does_only_what_is_left(videos, tmp_path, monkeypatch):
    files, path, seen = find_videos(videos), tmp_path / "frames.lmdb", []
    run = DecodePool.run

    def spy(pool, paths, settings):
        paths = list(paths)
        seen.append({path.stem for path in paths})
        return run(pool, paths, settings)

    monkeypatch.setattr(DecodePool, "run", spy)
    some = {name: files[name] for name in list(files)[:5]}  # with the two that fail
    first = extract(some, path, SMALL)
    assert FrameStore(path).count("video0") == 4  # open for reading while it is taken back
    seen.clear()
    both = extract(files, path, SMALL)
    assert seen[-1] == set(files) - set(some) | {"audio", "empty"}
    assert both[both["video_id"].isin(some)].to_dict("records") == first.to_dict("records")
    assert content(path) == content_of_unbroken(files, tmp_path)
    good = {name: file for name, file in files.items() if name.startswith("video")}
    seen.clear()
    extract(good, path, SMALL)
    assert seen == []
    extract({"audio": files["audio"], "more": files["video1"]}, path, SMALL)
    assert seen[-1] == {"audio", "video1"}
    assert set(FrameStore(path).rows()) == {*files, "more"}  # what was not asked for is left alone


def content_of_unbroken(files, folder):
    extract(files, folder / "unbroken.lmdb", SMALL)
    return content(folder / "unbroken.lmdb")


def test_a_changed_file_is_read_again(videos, tmp_path):
    shutil.copy(videos / "video9.mp4", tmp_path / "a.mp4")
    extract({"a": tmp_path / "a.mp4"}, tmp_path / "frames.lmdb", FrameSettings(40))
    write_video(tmp_path / "a.mp4", count=3)
    row = extract({"a": tmp_path / "a.mp4"}, tmp_path / "frames.lmdb", FrameSettings(40)).iloc[0]
    store = FrameStore(tmp_path / "frames.lmdb")
    assert (row["frames"], store.count("a"), store.verify()) == (3, 3, [])
    assert row["file"] == "a.mp4"  # beside the store: it may move with it


def spy_on(monkeypatch, between):
    """Call `between` whenever a file has been read and not yet been stored."""
    run = DecodePool.run

    def wrapped(pool, paths, settings):
        for result in run(pool, paths, settings):
            between()
            yield result

    monkeypatch.setattr(DecodePool, "run", wrapped)


def grow(file):
    with open(file, "ab") as opened:
        opened.write(bytes(100))


def swap_and_back(file):
    """Another file stood there for a while: size, time, head and tail are what they were."""
    os.replace(file, file.with_suffix(".kept"))
    os.replace(file.with_suffix(".kept"), file)


@pytest.mark.parametrize("change", [grow, os.unlink, os.utime, swap_and_back])
def test_a_file_that_changes_while_it_is_read_gives_nothing(tmp_path, monkeypatch, change):
    """It is another one by then: its frames are read again, and the others are kept."""
    files = {name: write_video(tmp_path / f"{name}.mkv", count=6) for name in ("a", "b")}
    with monkeypatch.context() as during:
        during.setattr(frames.Builder, "check_space", lambda *_: None)
        spy_on(during, lambda: change(files["a"]) if files["a"].exists() else None)
        rows = extract(files, tmp_path / "frames.lmdb", SMALL).set_index("video_id")
    assert rows["status"].to_dict() == {"a": "failed", "b": "ok"}
    assert "changed while it was read" in rows.loc["a", "reason"]
    store = FrameStore(tmp_path / "frames.lmdb")
    assert (store.count("a"), store.count("b"), store.verify()) == (0, 4, [])
    write_video(files["a"], count=6)
    again = extract(files, tmp_path / "frames.lmdb", SMALL)
    assert again[["status", "reason"]].values.tolist() == [["ok", ""]] * 2


def keep_time(file, data):
    """Other content with the time of the old."""
    stat = file.stat()
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_another_video_of_equal_size_is_read_again(tmp_path):
    """Also with the same time; and a download that was preallocated and has now come in."""
    file, path = tmp_path / "a.avi", tmp_path / "frames.lmdb"
    whole = write_video(file, count=8, codec="mpeg4").read_bytes()
    other = write_video(tmp_path / "b.avi", count=5, codec="mpeg4").read_bytes()
    file.write_bytes(other.ljust(len(whole), b"\0"))
    assert extract({"a": file}, path, FrameSettings(40))["frames"].tolist() == [5]
    keep_time(file, whole)
    assert extract({"a": file}, path, FrameSettings(40))["frames"].tolist() == [8]
    file.write_bytes(whole[:-8000] + bytes(8000))
    os.utime(file, ns=(0, 0))
    assert extract({"a": file}, path, FrameSettings(40)).loc[0, "frames"] < 8
    keep_time(file, whole)
    assert extract({"a": file}, path, FrameSettings(40))["frames"].tolist() == [8]


def test_what_is_ok_with_a_reason_is_read_again(tmp_path, monkeypatch):
    good = write_video(tmp_path / "a.mkv", count=90, height=128, width=192)
    file, path, seen = tmp_path / "b.mkv", tmp_path / "frames.lmdb", []
    file.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    files = {"a": good, "b": file}
    rows = extract(files, path, SMALL).set_index("video_id")
    assert rows["status"].tolist() == ["ok", "ok"]
    assert rows.loc["b", "reason"].startswith("cut off: ")
    run = DecodePool.run
    monkeypatch.setattr(
        DecodePool,
        "run",
        lambda pool, paths, settings: run(
            pool, (seen.append(p.stem) or p for p in paths), settings
        ),
    )
    extract(files, path, SMALL)
    assert set(seen) == {"b"}


NAMES = [b"new\nline.mp4", b"back\\slash.mp4", b"not\xffutf8.mp4", b"f\xe9/a.mp4", b"50%2f.mp4"]
NAMES += [
    b"\x1b[31mred.mp4",
    "right\u202eleft.mp4".encode(),
    "视频.mp4".encode(),
    b"a" * 250 + b".mp4",
]
NAMES += [b"\n" * 200 + b".mp4", b"50%.mp4"]


def test_no_name_stops_the_others_and_each_is_kept_exactly(tmp_path):
    root = tmp_path / "videos"
    source = write_video(tmp_path / "a.mp4", count=4)
    for name in NAMES:
        path = os.fsencode(root) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy(source, path)
    (root / "to_nowhere.mp4").symlink_to("nowhere.mp4")
    rows = extract_folder(root, tmp_path / "out", frames=4)
    assert rows["status"].value_counts().to_dict() == {"ok": len(NAMES), "failed": 1}
    assert {unquote_to_bytes(os.fsencode(file)) for file in rows["file"]} == {
        *NAMES,
        b"to_nowhere.mp4",
    }
    text = (tmp_path / "out" / "videos.jsonl").read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(NAMES) + 1
    assert all(line.isprintable() for line in text.splitlines())
    assert FrameStore(tmp_path / "out" / "frames.lmdb").verify() == []
    ids = dict(zip(rows["file"], rows["video_id"], strict=True))
    assert ids["50%.mp4"] == "50%"
    assert ids["50%252f.mp4"] == "50%252f"
    assert ids["视频.mp4"] == "视频"
    assert ids["new%0Aline.mp4"] == "new%0Aline"


def test_two_files_never_share_an_id(tmp_path):
    for name in ("v.mp4", "v.mkv", "v.mp4.avi", "a/w.mp4", "b/w.mp4", "a__w.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_videos(tmp_path)
    assert len(found) == len(set(found.values())) == 6


def test_other_settings_are_an_error_that_says_both(videos, tmp_path):
    files, path = {"a": videos / "video0.mp4"}, tmp_path / "frames.lmdb"
    extract(files, path, SMALL)
    message = r"expected a store built with \{'frames': 8\}, got \{'frames': 4\}"
    with pytest.raises(ValueError, match=message):
        extract(files, path, FrameSettings(8, 32))
    with pytest.raises(
        ValueError, match=r"built with \{'decoder': 'PyAV.*, got \{'decoder': '.*'\}"
    ):
        extract(files, path, replace(SMALL, decoder="pyav"))
    os.replace(path, tmp_path / "frames.lmdb.partial")
    with pytest.raises(FileNotFoundError, match="half-built, extract again"):
        FrameStore(path).video_ids()
    with pytest.raises(ValueError, match=message):
        extract(files, path, FrameSettings(8, 32))
    assert not path.exists()


def test_kill_at_ten_moments_then_an_identical_store(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "COMMIT", 8)
    videos = tmp_path / "videos"
    videos.mkdir()
    files = {f"v{i:03d}": write_video(videos / f"v{i:03d}.mp4", count=2 + i % 5) for i in range(80)}
    start = time.monotonic()
    extract(files, tmp_path / "unbroken.lmdb", SMALL)
    whole = time.monotonic() - start
    path, rng, fork = (
        tmp_path / "killed.lmdb",
        np.random.default_rng(0),
        multiprocessing.get_context("fork"),
    )
    kills, partly = 0, 0
    while kills < 10:
        process = fork.Process(target=extract, args=(files, path, SMALL), kwargs={"workers": 1})
        process.start()
        process.join(rng.uniform(0.0, 1.2) * whole)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if path.exists():  # it was finished before the kill: begin anew
            assert content(path) == content(tmp_path / "unbroken.lmdb")
            shutil.rmtree(path)
        elif (path.with_name("killed.lmdb.partial") / "data.mdb").exists():
            rows = sum(
                key.startswith(b"\0row/") for key in content(path.with_name("killed.lmdb.partial"))
            )
            partly += 0 < rows < len(files)
    extract(files, path, SMALL)
    assert partly > 0  # some kill came in the middle
    assert content(path) == content(tmp_path / "unbroken.lmdb")
    assert FrameStore(path).verify() == []


def test_too_little_space_is_said_before_anything_is_written(videos, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(frames.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"needs about [\d,]+ bytes, 1,000 are free"):
        extract({"a": videos / "video0.mp4"}, tmp_path / "frames.lmdb", SMALL)
    assert not (tmp_path / "frames.lmdb").exists()


def _extract_on_a_small_disk(files, path, answer):
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)
    )  # writes behind it fail, as on a full disk
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        extract(files, path, FrameSettings(12))
    except OSError as error:
        answer.put(str(error))
    else:
        answer.put("no error")


def test_a_full_disk_is_one_clear_error_and_the_next_run_goes_on(tmp_path):
    source = write_video(tmp_path / "a.mp4", count=12, height=240, width=320)
    files = {f"v{i:03d}": source for i in range(70)}
    fork = multiprocessing.get_context("fork")
    answer = fork.Queue()
    process = fork.Process(
        target=_extract_on_a_small_disk, args=(files, tmp_path / "frames.lmdb", answer)
    )
    process.start()
    process.join()
    assert "could not be written" in (message := answer.get())
    assert "make room and run again" in message
    assert not (tmp_path / "frames.lmdb").exists()
    rows = extract(files, tmp_path / "frames.lmdb", FrameSettings(12))
    assert (rows["frames"] == 12).all()
    assert FrameStore(tmp_path / "frames.lmdb").verify() == []


def test_only_one_at_a_time_builds_a_store(videos, tmp_path, monkeypatch):
    files, path, run = {"a": videos / "video0.mp4"}, tmp_path / "frames.lmdb", DecodePool.run

    def another_comes(pool, paths, settings):
        with pytest.raises(OSError, match="another process is extracting into"):
            extract(files, path, SMALL)
        return run(pool, paths, settings)

    monkeypatch.setattr(DecodePool, "run", another_comes)
    assert extract(files, path, SMALL)["status"].tolist() == ["ok"]


def test_a_second_process_never_writes_into_a_live_store(videos, tmp_path, monkeypatch):
    """It may come at any moment; here between the last video and the renaming."""
    files, path, replace_ = {"a": videos / "video0.mp4"}, tmp_path / "frames.lmdb", os.replace
    outcomes = []

    def another_comes(old, new):
        try:
            extract({**files, "b": videos / "video1.mp4"}, path, SMALL)
        except OSError as error:
            outcomes.append(str(error))
        replace_(old, new)

    monkeypatch.setattr(frames.os, "replace", another_comes)
    extract(files, path, SMALL)
    assert outcomes == [f"another process is extracting into {path}"]
    assert FrameStore(path).video_ids() == ["a"]
    assert FrameStore(path).verify() == []
    assert not (tmp_path / "frames.lmdb.partial").exists()


def test_a_second_process_that_begins_at_once_takes_nothing_from_the_first(
    videos, tmp_path, monkeypatch
):
    """The moment after the lock is released: the second moves the store to where it is built."""
    path, release_ = tmp_path / "frames.lmdb", FileLock.release

    def another_comes(lock, **options):
        release_(lock, **options)
        os.rename(path, tmp_path / "frames.lmdb.partial")

    monkeypatch.setattr(FileLock, "release", another_comes)
    assert extract({"a": videos / "video0.mp4"}, path, SMALL)["status"].tolist() == ["ok"]


def test_the_file_takes_no_more_disk_than_its_content(store):
    size = sum(len(value) for value in content(store).values())
    assert (store / "data.mdb").stat().st_size < 3 * size + 100_000
    assert sorted(path.name for path in store.iterdir()) == ["data.mdb"]


@pytest.mark.parametrize(
    "bad", ["../x", "a/b", "a\\b", "", ".", "..", ".hidden", "a\0b", "a\n", "x" * 481, 7, "\ud800"]
)
def test_ids_that_could_leave_the_folder_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="unusable video id"):
        extract({bad: None}, tmp_path / "frames.lmdb", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_videos_are_found_by_stem(tmp_path):
    names = [
        "deep/er/video1.webm",
        "video2.MP4",
        "0017_Pianist_00.23.28.872-00.23.34.843.avi",
        "v_abc.mkv",
        "xyz.mp4",
        "55@N00_1_2.mp4",
        "66@N00_1_2.",
        "77.mov",
        "-dash_1.avi",
        ".hidden.mp4",
        ".cache/video9.mp4",
        "video3.json",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    ids = [
        "video1",
        "video2",
        "0017_Pianist_00.23.28.872-00.23.34.843",
        "abc",
        "v_xyz",
        "55@N00_1_2.",
        "66@N00_1_2.",
    ]
    ids += ["77.avi", "-dash_1", "nobody", "video9", ".hidden", "video3"]
    found = {
        name: str(path.relative_to(tmp_path)) for name, path in find_videos(tmp_path, ids).items()
    }
    assert found == {**dict(zip(ids[:9], names, strict=False)), "video3": "video3.json"}
    with pytest.raises(FileNotFoundError, match="no folder of videos"):
        find_videos(tmp_path / "nowhere", ids)


def test_several_files_of_one_id_are_reported(tmp_path):
    for name in ("b/v.mp4", "a/v.mkv", "v.json", "w.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match="1 ids have several files: v: .*v.mkv, .*v.mp4, .*v.json"):
        assert find_videos(tmp_path, ["v", "w"]) == {
            "v": tmp_path / "a/v.mkv",
            "w": tmp_path / "w.mp4",
        }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(find_videos(tmp_path)) == {"v.mkv", "v.mp4", "v.json", "w"}


def test_a_folder_with_equal_names_gets_longer_ids(tmp_path):
    for name in ("a/v.mp4", "b/v.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert find_videos(tmp_path) == {
        "a__v.mp4": tmp_path / "a/v.mp4",
        "b__v.mp4": tmp_path / "b/v.mp4",
    }


def test_all_real_clips_are_extracted(realdata, tmp_path):
    files = {
        name: path
        for name, path in find_videos(realdata / "videos").items()
        if path.suffix != ".csv"
    }
    rows = extract(files, tmp_path / "frames.lmdb", FrameSettings(12, 224))
    assert len(rows) >= 18
    assert rows[["status", "reason", "frames"]].drop_duplicates().values.tolist() == [
        ["ok", "", 12]
    ]
    store = FrameStore(tmp_path / "frames.lmdb")
    assert store.verify() == []
    assert all(
        min(store.read(name, [0]).shape[1:3]) in (204, 224) for name in files
    )  # one is 204 wide
