"""Faults that no other test has: each is told in one line, at once, and stops nothing else."""

import os
import signal
import zipfile
from functools import partial
from pathlib import Path

import lmdb
import numpy as np
import pytest
import simplejpeg
import torch
from safetensors.torch import save_file

from tests.data import codecs
from tests.data.video_files import write_video
from tests.fakes import finished_run
from tests.fuzz import one_line
from tests.models.small_methods import make_glscl
from tvrkit import files
from tvrkit.data import records
from tvrkit.data.decoders import DecodePool, FrameSettings
from tvrkit.data.extract import extract
from tvrkit.data.manifest import Manifest
from tvrkit.data.prepare import adopt_store
from tvrkit.data.store import FrameStore
from tvrkit.models import checkpoints, official, weights
from tvrkit.training import runs
from tvrkit.training.card import write_card

DEEP = "[" * 100_000
LIMIT = 30  # seconds, most of them for a machine that is busy elsewhere


@pytest.fixture(autouse=True)
def no_fault_hangs():
    """A fault that hangs is one that fails."""

    def stop(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)


def told(call, *arguments, errors=(ValueError, FileNotFoundError)):
    """The one line of an error that has to come."""
    with pytest.raises(errors) as caught:
        call(*arguments)
    text = str(caught.value)
    assert one_line(text)
    assert text.isprintable()
    return text


# Frames
#  ------------------------------------------------------------------------------------------------


def without(path, name):
    """A video with the boxes of this name called otherwise."""
    data = write_video(path.with_suffix(".mp4"), count=8).read_bytes().replace(name, b"free")
    path.write_bytes(data)


def claim(path, name, offset, value):
    """A video with another number behind the name of a box."""
    data = bytearray(write_video(path.with_suffix(".mp4"), count=8).read_bytes())
    start = data.index(name) + offset
    data[start : start + 4] = value.to_bytes(4)
    path.write_bytes(data)


NO_VIDEOS = {
    "a list of files": lambda path: path.write_text("ffconcat version 1.0\nfile '/etc/passwd'\n"),
    "a session": lambda path: path.write_text("v=0\nm=video 5004 RTP/AVP 96\nc=IN IP4 127.0.0.1\n"),
    "a page": lambda path: path.write_text("<html><video src='file:///etc/passwd'></html>" * 50),
    "a drawing": lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>" * 50),
    "subtitles": lambda path: path.write_text("1\n00:00:00,000 --> 00:00:02,000\nhello\n\n" * 50),
    "an archive": lambda path: zipfile.ZipFile(path, "w").writestr("a.mp4", bytes(5000)),
    "an array": lambda path: np.save(path.open("wb"), np.zeros(999)),
    "a picture": lambda path: path.write_bytes(
        simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8))
    ),
    "no tracks": lambda path: without(path, b"trak"),
    "no samples": lambda path: without(path, b"stbl"),
    "no coder": lambda path: without(path, b"avc1"),
    "no sizes": lambda path: without(path, b"stsz"),
}
ODD_VIDEOS = {
    "no index": lambda path: without(path, b"moov"),
    "billions of frames": lambda path: claim(path, b"stsz", 12, 2**31 - 1),
    "frames of 2 GB": lambda path: claim(path, b"stsz", 16, 2**31 - 1),
    "chunks behind the end": lambda path: claim(path, b"stco", 12, 2**31 - 1),
    "no time passes": lambda path: claim(path, b"stts", 16, 0),
    "an hour a frame": lambda path: claim(path, b"stts", 16, 2**31 - 1),
    "no units of time": lambda path: claim(path, b"mdhd", 16, 0),
    "no key frames": lambda path: without(path, b"stss"),
    "a key frame that is none": lambda path: claim(path, b"stss", 12, 5),
    "no coder's settings": lambda path: without(path, b"avcC"),
}


@pytest.fixture(scope="module")
def pool():
    with DecodePool(1, timeout=20.0) as made:
        yield made


@pytest.mark.parametrize("name", NO_VIDEOS)
def test_what_is_no_video_has_a_reason(tmp_path, pool, name):
    NO_VIDEOS[name](tmp_path / "v.mov")
    ((info, frames),) = pool.run([tmp_path / "v.mov"], FrameSettings(4))
    assert frames == []
    assert one_line(info.reason)
    assert info.reason.isprintable()


@pytest.mark.parametrize("name", ODD_VIDEOS)
def test_a_video_with_an_odd_header_gives_the_frames_of_the_full_decode_or_a_reason(tmp_path, name):
    ODD_VIDEOS[name](tmp_path / "v.mov")
    ((info, frames),) = codecs.by_kit([tmp_path / "v.mov"], FrameSettings(4))
    if not info.reason:
        truth, stamps = codecs.decode_all(tmp_path / "v.mov")
        assert codecs.differing(frames, truth[codecs.expected(stamps, 4)]) == 0
    assert info.reason or info.frames
    assert info.reason.isprintable()


def test_a_few_bytes_cannot_buy_hours(tmp_path):
    """A drawing of 46 kB that has 2,000 pictures of 64 million pixels: its time is what its bytes
    are worth."""
    dot = bytes.fromhex("21f90400010000002c00000000010001000002024401 00")
    size = (8000).to_bytes(2, "little") * 2
    start = b"GIF89a" + size + bytes.fromhex("800000000000ffffff")
    (tmp_path / "a.gif").write_bytes(start + dot * 2000 + b";")
    with DecodePool(1, timeout=1.0) as pool:
        ((info, _),) = pool.run([tmp_path / "a.gif"], FrameSettings(4))
    assert info.reason == "hangs: stopped after 1 s"


def nothing(path):
    return None


NO_FILES = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path.name),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "gone": nothing,
}


@pytest.mark.parametrize("name", NO_FILES)
def test_what_is_no_file_is_passed_over(tmp_path, name):
    NO_FILES[name](tmp_path / "a.mp4")
    files = {"a": tmp_path / "a.mp4", "b": write_video(tmp_path / "b.mp4", count=4)}
    rows = extract(files, tmp_path / "frames.lmdb", FrameSettings(2), workers=1)
    assert rows["reason"].tolist() == ["no file found", ""]
    assert rows["frames"].tolist() == [0, 2]


# Stores and prepared sets
#  ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    videos = {name: write_video(folder / f"{name}.mp4", count=4) for name in "ab"}
    extract(videos, folder / "frames.lmdb", FrameSettings(2), workers=1)
    return folder / "frames.lmdb"


@pytest.fixture
def copy(frames, tmp_path):
    (tmp_path / "frames.lmdb").mkdir()
    (tmp_path / "frames.lmdb/data.mdb").write_bytes((frames / "data.mdb").read_bytes())
    return tmp_path / "frames.lmdb"


def put(store, key, value):
    with (
        lmdb.open(str(store), map_size=1 << 28, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(key, value)


def other_jpeg(colours, size=(64, 96)):
    picture = np.zeros((*size, 1 if colours == "GRAY" else 3), np.uint8)
    return simplejpeg.encode_jpeg(picture, colorspace=colours)


ENTRIES = {
    "row of nothing": (b"\0row/a", b""),
    "row of null": (b"\0row/a", b"null"),
    "row of a list": (b"\0row/a", b"[]"),
    "row of a number": (b"\0row/a", b"7"),
    "row without end": (b"\0row/a", DEEP.encode()[:50_000]),
    "row of no text": (b"\0row/a", b"\xff\xfe"),
    "row without frames": (b"\0row/a", b'{"video_id": "a"}'),
    "row with a number as hash": (b"\0row/a", b'{"frames": 2, "video_id": "a", "hash": 7}'),
    "settings without end": (b"\0settings", DEEP.encode()[:50_000]),
    "settings of no text": (b"\0settings", b"\xff"),
    "frame of nothing": (b"a/000001", b""),
    "frame in grey": (b"a/000001", other_jpeg("GRAY")),
    "frame of another size": (b"a/000001", other_jpeg("RGB", (32, 32))),
    "frame that is a .png": (b"a/000001", b"\x89PNG\r\n\x1a\n" + bytes(99)),
    "frame of nobody": (b"\xff\xfe/000000", other_jpeg("RGB")),
    "frame behind a gap": (b"a/000009", other_jpeg("RGB")),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_store_with_an_entry_of_anything_is_told(copy, name):
    put(copy, *ENTRIES[name])
    problems = FrameStore(copy).verify()
    assert problems
    assert all(map(one_line, problems))


NO_STORES = {
    "pipe": lambda data: os.mkfifo(data),
    "folder": lambda data: data.mkdir(),
    "empty": lambda data: data.touch(),
    "text": lambda data: data.write_text("x" * 9000),
    "loop": lambda data: data.symlink_to(data.name),
    "endless": lambda data: data.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("name", NO_STORES)
def test_what_is_no_store_is_refused(tmp_path, name):
    (tmp_path / "frames.lmdb").mkdir()
    NO_STORES[name](tmp_path / "frames.lmdb/data.mdb")
    store = tmp_path / "frames.lmdb"
    told(FrameStore(store).video_ids)
    told(adopt_store, store, tmp_path / "out", ["a"])


@pytest.mark.parametrize("name", ["captions.jsonl", "videos.jsonl", "card.json"])
@pytest.mark.parametrize("how", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_prepared_set_with_no_file_in_place_of_one_is_refused(tmp_path, name, how):
    for other in ("captions.jsonl", "videos.jsonl", "card.json"):
        (tmp_path / other).write_text("{}")
    (tmp_path / "frames.lmdb").mkdir()
    (tmp_path / name).unlink()
    how(tmp_path / name)
    assert "half-built" in told(Manifest.open, tmp_path)


# Runs
#  ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    return finished_run("honest")


def objects(folder):
    np.savez(folder / "ranks.npz", t2v=np.array([{}], object))


def lines(name, text):
    return lambda folder: (folder / name).write_text(text)


def linked(name):
    def change(folder):
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return change


def piped(folder):
    (folder / "metrics.json").unlink()
    os.mkfifo(folder / "metrics.json")


# what is changed, and whether run.json gets the new hashes
CHANGES = {
    "metrics of a list": (lines("metrics.json", "[]"), True),
    "metrics without end": (lines("metrics.json", DEEP), True),
    "metrics of text": (lines("metrics.json", '{"t2v R@1": "99"}'), True),
    "ranks of objects": (objects, True),
    "ranks of nothing": (lines("ranks.npz", ""), True),
    "endless ranks": (linked("ranks.npz"), False),
    "endless metrics": (linked("metrics.json"), False),
    "endless card": (linked("run.json"), False),
    "a pipe": (piped, False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_run_is_one_line_and_stops_nobody_else(run, name):
    other = finished_run("other")
    change, again = CHANGES[name]
    card = dict(other.card)
    change(other.folder)
    if again:
        write_card(other.folder, card)
    assert one_line(runs.Run(other.folder).damage())
    with pytest.warns(UserWarning, match="other/seed0 is damaged and left out"):
        assert runs.find("mine") == [run]


CARDS = [
    *({"data": value} for value in (None, [], {}, {"counts": 7}, {"counts": []})),
    *({"artefacts": value} for value in (None, [], 7, {"config.yaml": 7})),
]


@pytest.mark.parametrize("change", CARDS, ids=str)
def test_a_card_of_wrong_types_is_one_line(run, change):
    card = files.read_json(run.folder / "run.json") | change
    files.write_json(run.folder / "run.json", files.sealed(card))
    assert one_line(runs.Run(run.folder).damage(every=True))


# Checkpoints
#  ------------------------------------------------------------------------------------------------


def rewritten(path, **metadata):
    """A checkpoint of the kit with other metadata."""
    method = make_glscl()
    checkpoints.save(method, path)
    state, known = checkpoints.read_tensors(path)
    merged = {key: value for key, value in (known | metadata).items() if value is not None}
    save_file(state, path, merged)


METADATA = [
    *({"settings": value} for value in (None, "", "7", "[]", "{", DEEP[:20_000])),
    *({"preprocessing": value} for value in ("7", "[]", "{", '{"a": 1}', DEEP[:20_000])),
    {"method": "no:Method"},
    {"sha256": "0" * 64},
]


@pytest.mark.parametrize("change", METADATA, ids=lambda change: str(change)[:30])
def test_odd_metadata_of_a_checkpoint_are_refused_or_do_not_matter(tmp_path, change):
    path = tmp_path / "a.safetensors"
    rewritten(path, **change)
    for call in (weights.describe, checkpoints.facts, partial(checkpoints.load, make_glscl())):
        text = "it does not matter"
        try:
            call(path)
        except ValueError as error:
            text = str(error)
        assert one_line(text)


def header(path, length, text):
    path.write_bytes(length.to_bytes(8, "little") + text)


TENSORS = {
    "a header of exabytes": lambda path: header(path, 2**62, b"{}"),
    "a header of nothing": lambda path: header(path, 0, b""),
    "a header of a list": lambda path: header(path, 2, b"[]"),
    "a header without end": lambda path: header(path, 20_000, DEEP[:20_000].encode()),
    "weights behind the end": lambda path: header(
        path, 64, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(64)
    ),
    "weights that overlap": lambda path: header(
        path,
        128,
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}'.ljust(128)
        + bytes(6),
    ),
    "a pipe": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_file_of_weights_that_is_none_is_refused(tmp_path, name):
    path = tmp_path / "a.safetensors"
    TENSORS[name](path)
    told(checkpoints.read_tensors, path)
    told(official.load_official, "hmmc", path)


@pytest.mark.parametrize("levels", [30, 60])
@pytest.mark.parametrize("key", [True, False])
def test_a_state_of_tuples_without_end_is_refused(tmp_path, levels, key):
    path = tmp_path / "a.pth"
    value = torch.zeros(1)
    pairs = b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(1, levels + 1))
    inside = b"()q\x01" + pairs + b"K\x01u" if key else b"(X\x01\0\0\0a)q\x01" + pairs + b"u"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}" + inside + b".")
        archive.writestr("archive/version", "3\n")
    assert "items in each other" in told(checkpoints.read_tensors, path)
    assert value.numel() == 1


# Names and texts
#  ------------------------------------------------------------------------------------------------

NAMES = ["", ".", "..", "../x", "a/../../b", "/etc", "a//b", "a\0b", "a\nb", ".hidden", "a b", "~"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_no_run_and_no_data_set(name):
    told(files.run, name)
    told(files.data, name)


@pytest.mark.parametrize("value", [["x" * 10**6] * 2, ["\x1b[2J"] * 2, ["a\nb"] * 2])
def test_a_name_in_an_error_is_short_and_printable(value):
    text = told(records.check_unique, "a.json", "id", value)
    assert len(text) < 300
