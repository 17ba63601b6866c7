import faulthandler
import os
import pickle
import shutil
from pathlib import Path
from urllib.parse import unquote_to_bytes

import lmdb
import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from tests.data import fuzz_decode
from tests.data.video_files import indices, pictures, write_video
from tvrkit.data.decoders import FrameSettings
from tvrkit.data.extract import extract
from tvrkit.data.store import UNSAFE, FrameStore, check_id, escape, make_id


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four frames of each of twelve videos."""
    folder = tmp_path_factory.mktemp("store")
    files = {f"video{n}": write_video(folder / f"video{n}.mp4", count=4 + n) for n in range(12)}
    extract(files, folder / "frames.lmdb", FrameSettings(4, 32))
    return folder / "frames.lmdb"


@pytest.mark.parametrize("ids", [["a_1", "a_1_1", "video7", "视频"], ["Video12", "Video3"]])
def test_stores_of_other_making_can_be_read(tmp_path, ids):
    """HMMC's: the videos of CHVTT are called "Video" and a number there."""
    with (
        lmdb.open(str(tmp_path / "theirs"), map_size=1 << 24) as environment,
        environment.begin(write=True) as out,
    ):
        for video_id in ids:
            for index, image in enumerate(pictures(30, 32, 32)):
                out.put(f"{video_id}_{index}".encode(), simplejpeg.encode_jpeg(image))
    read = FrameStore(tmp_path / "theirs")
    assert read.layout == "hmmc"
    assert read.video_ids() == sorted(ids)
    assert [read.count(video_id) for video_id in ids] == [30] * len(ids)
    assert indices(read.read(ids[0], [2, 29])) == [2, 29]
    assert read.verify() == []
    assert read.settings == {}


def test_reading_errors_say_what_and_where(store, tmp_path):
    with pytest.raises(KeyError, match="no frame 4 of video 'video0'"):
        FrameStore(store).read("video0", [0, 4])
    with pytest.raises(KeyError, match="no frame 0 of video 'nobody'"):
        FrameStore(store).read("nobody", [0])
    with pytest.raises(FileNotFoundError, match=r"no frame store at .*nowhere$"):
        FrameStore(tmp_path / "nowhere").video_ids()
    (tmp_path / "text").write_text("no store " * 1000)
    with pytest.raises(ValueError, match="is no frame store"):
        FrameStore(tmp_path / "text").video_ids()


def test_a_cut_off_store_is_an_error_and_no_crash(store, tmp_path):
    shutil.copytree(store, tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "data.mdb", (store / "data.mdb").stat().st_size - 8192)
    with pytest.raises(ValueError, match="is cut off: expected"):
        FrameStore(tmp_path / "cut").read("video0", [0])


def test_verify_finds_what_is_wrong(store, tmp_path):
    shutil.copytree(store, tmp_path / "bad")
    with (
        lmdb.open(str(tmp_path / "bad"), map_size=1 << 28) as environment,
        environment.begin(write=True) as out,
    ):
        out.delete(b"video1/000003")
        out.delete(b"video2/000001")
        out.put(b"video3/000000", b"no picture")
        out.put(b"stranger/000000", out.get(b"video0/000000"))
    problems = "\n".join(FrameStore(tmp_path / "bad").verify())
    for part in (
        "47 frames are stored, 45 can be reached",
        "video1: expected 4 frames, found 3",
        "video2: expected 4 frames, found 1",
        "frame 0 of 'video3' is broken",
        "1 videos without a row: stranger",
    ):
        assert part in problems


def change(store, folder, key, make):
    """A copy of the store with another entry of that key, as `make` makes it of the old."""
    shutil.copytree(store, folder)
    with (
        lmdb.open(str(folder), map_size=1 << 28) as environment,
        environment.begin(write=True) as out,
    ):
        out.put(key, make(out.get(key)))
    return FrameStore(folder)


def a_bit_less(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("place", [-1, -20, 300])
def test_a_frame_that_is_not_as_it_was_stored_is_told_when_it_is_read(store, tmp_path, place):
    """One bit, and still a picture; the other frames are read."""
    changed = change(
        store, tmp_path / "bad", b"video3/000002", lambda jpeg: a_bit_less(jpeg, place)
    )
    wrong = r"frame 2 of 'video3' is broken: not as it was stored, it has another SHA-256"
    assert np.array_equal(changed.read("video3", [0, 3]), FrameStore(store).read("video3", [0, 3]))
    with pytest.raises(ValueError, match=wrong):
        changed.read("video3", [1, 2])
    (problem,) = changed.verify()
    assert "frame 2 of 'video3' is broken" in problem


def test_a_neighbour_in_place_of_a_frame_is_told(store, tmp_path):
    other = FrameStore(store)
    with other.begin() as transaction:
        neighbour = bytes(transaction.get(b"video3/000001"))
    with pytest.raises(ValueError, match="another SHA-256"):
        change(store, tmp_path / "bad", b"video3/000002", lambda _: neighbour).read("video3", [2])


def test_hashes_from_outside_are_what_counts(store, tmp_path):
    """As a prepared set's: a store that hashes its own other frames is not the one it was."""
    other = tmp_path / "other.lmdb"
    extract({"video3": write_video(tmp_path / "a.mp4", count=30)}, other, FrameSettings(4, 32))
    own, hashes = FrameStore(other), {"video3": FrameStore(store).hash("video3")}
    assert own.verify() == []
    assert FrameStore(store, hashes).read("video3", [0]).shape == (1, 32, 48, 3)
    with pytest.raises(ValueError, match="another SHA-256"):
        FrameStore(other, hashes).read("video3", [0, 3])


def jpeg_that_claims(height, width):
    data = bytearray(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
    start = data.index(b"\xff\xc0") + 5  # marker, length, bits
    data[start : start + 4] = height.to_bytes(2) + width.to_bytes(2)
    return bytes(data)


def test_a_few_bytes_cannot_claim_the_memory(store, tmp_path):
    shutil.copytree(store, tmp_path / "bomb")
    with (
        lmdb.open(str(tmp_path / "bomb"), map_size=1 << 28) as environment,
        environment.begin(write=True) as out,
    ):
        out.put(b"video3/000000", jpeg_that_claims(30_000, 30_000))
    bomb = FrameStore(tmp_path / "bomb")
    with pytest.raises(ValueError, match=r"'video3' is broken: 30000 x 30000 pixels, expected at"):
        bomb.read("video3", [0])
    assert len(bomb.verify()) == 1


def test_damaged_stores_are_told_and_end_no_process(store, tmp_path):
    """Bytes anywhere in the file: LMDB trusts them, and may read outside of it."""
    faulthandler.disable()  # what ends a process is expected here
    outcomes = list(fuzz_decode.attack_stores(store, tmp_path, 20, seed=0))
    faulthandler.enable()
    assert [wrong for _, wrong in outcomes if wrong] == []
    assert sum(problems > 0 for problems, _ in outcomes) > 8


@given(st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name))
def test_escaping_keeps_a_name_and_makes_it_text(name):
    text = escape(os.fsdecode(name))
    assert unquote_to_bytes(os.fsencode(text)) == name
    assert not UNSAFE.search(text.replace("%", ""))
    text.encode()
    usable = make_id(os.fsdecode(name).replace("/", "").lstrip("."))
    assert not usable or check_id(usable) == usable


class _Reads(Dataset):
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return 12

    def __getitem__(self, item):
        return torch.from_numpy(self.store.read(f"video{item}", [0, 3]))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_store_works_in_loader_workers(store, context):
    read = FrameStore(store)
    assert read.count("video0") == 4  # open in this process already
    loader = DataLoader(_Reads(read), batch_size=4, num_workers=1, multiprocessing_context=context)
    expected = [read.read(f"video{item}", [0, 3]) for item in range(12)]
    assert torch.equal(torch.cat(list(loader)), torch.from_numpy(np.stack(expected)))
    assert len(pickle.dumps(read)) < 500


@given(st.text(max_size=600))
def test_an_accepted_id_is_a_key_and_a_name(text):
    try:
        check_id(text)
    except ValueError:
        return
    assert Path("/folder", text).parent == Path("/folder")
    assert 0 < len(f"{text}/000000".encode()) <= 511
