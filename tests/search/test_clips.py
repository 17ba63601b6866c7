"""Files of a folder and the segments that are read of them."""

import os

import numpy as np
import pytest
import simplejpeg

from tests.data.video_files import write_audio
from tvrkit.data.decoders import DecodePool, VideoInfo
from tvrkit.search import clips


def jpeg(colour):
    return simplejpeg.encode_jpeg(np.full((32, 32, 3), colour, np.uint8))


def test_finds_videos_in_every_folder_and_no_other_file(tmp_path):
    for name in ("b.mp4", "deep/er/a.MKV", ".hidden.mp4", ".dir/c.mp4", "notes.txt", "no_suffix"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = clips.find(tmp_path)
    assert [os.path.basename(row["path"]) for row in found] == ["b.mp4", "a.MKV"]
    with pytest.raises(FileNotFoundError, match="no folder of videos"):
        clips.find(tmp_path / "nowhere")


def test_links_are_followed_and_loops_end(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.mp4").write_bytes(b"x")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    (outside / "back").symlink_to(folder)
    (folder / "self").symlink_to(folder)
    (folder / "nowhere.mp4").symlink_to(tmp_path / "gone.mp4")
    found = clips.find(folder)
    assert [row["path"] for row in found] == [str(folder / "link" / "a.mp4")]


def test_names_of_any_bytes_have_a_key_and_a_text(tmp_path):
    names = [b'it\'s "quoted".mp4', b"two\nlines.mp4", "😀 狗.mp4".encode(), b"\xff\xfe.mp4"]
    for name in names:
        open(os.path.join(os.fsencode(tmp_path), name), "wb").close()
    found = clips.find(tmp_path)
    assert {os.path.basename(row["name"]) for row in found} == set(names)
    assert all(row["file"].isalnum() and row["path"].encode() for row in found)
    assert len({row["file"] for row in found}) == 4


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        ([10] * 14, [(0, 14)]),
        ([10] * 30, [(0, 10), (5, 15), (10, 20), (15, 25), (20, 30)]),
        ([10] * 8 + [250] * 6, [(0, 8), (8, 14)]),
        ([10] * 8 + [250] + [10] * 6, [(0, 8), (8, 15)]),  # a flash ends no shot of its own
    ],
)
def test_cut(colours, expected):
    spans = clips.cut([jpeg(colour) for colour in colours], 10)
    assert spans == expected
    seen = {place for span in spans for place in range(*span)}
    assert seen == set(range(len(colours))), "every frame is in a segment"


def read(path, frames=8, seconds=10.0):
    (row,) = [row for row in clips.find(path.parent) if row["path"] == str(path)]
    with DecodePool(1) as pool:
        return clips.read(pool, row, frames, seconds)


def test_a_short_video_is_one_segment(corpus):
    (row,) = read(sorted(corpus.iterdir())[0])
    assert (row["start"], row["end"], len(row["pictures"])) == (0.0, 2.0, 8)
    assert (row["status"], row["reason"], len(row["sha256"])) == ("ok", "", 64)
    assert simplejpeg.decode_jpeg(row["strip"]).shape == (64, 8 * 64, 3)


def test_a_long_video_is_cut_at_its_shot(long_video):
    made = read(long_video)
    spans = [(round(row["start"], 2), round(row["end"], 2)) for row in made]
    before, after = [(0, 10), (5, 15), (10, 20)], [(a, a + 10) for a in (20, 25, 30, 35, 40)]
    assert spans == before + after
    assert [row["segment"] for row in made] == [*range(8)]
    assert all(len(row["pictures"]) == 8 for row in made)
    for row in made:
        red, green, _ = simplejpeg.decode_jpeg(row["pictures"][0])[0, 0].tolist()
        assert (red > 2 * green) == (row["start"] >= 20)


def test_what_gives_no_frames_has_a_reason(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    assert read(tmp_path / "text.mp4")[0]["reason"]
    assert "only audio" in read(write_audio(tmp_path / "sound.mp4"))[0]["reason"]
    (tmp_path / "gone.mp4").write_bytes(b"x")
    (found,) = [row for row in clips.find(tmp_path) if row["path"].endswith("gone.mp4")]
    (tmp_path / "gone.mp4").unlink()
    with DecodePool(1) as pool:
        (row,) = clips.read(pool, found, 8, 10.0)
    assert "No such file" in row["reason"]
    assert (row["status"], row["sha256"], "pictures" in row) == ("failed", "", False)


def test_a_long_video_that_goes_while_it_is_read_has_a_reason(long_video, monkeypatch):
    (row,), run = clips.find(long_video.parent), DecodePool.run

    def once(self, paths, settings):
        gone = settings.frames > 8
        return (
            iter([(VideoInfo(duration=50.0, reason="gone"), [])])
            if gone
            else run(self, paths, settings)
        )

    monkeypatch.setattr(DecodePool, "run", once)
    with DecodePool(1) as pool:
        (row,) = clips.read(pool, row, 8, 10.0)
    assert (row["status"], row["reason"]) == ("failed", "gone")


def test_a_folder_that_can_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"x")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.warns(UserWarning, match="passed over: .*Permission denied.*shut"):
        assert len(clips.find(tmp_path)) == 1


def test_real_clips_are_read(realdata):
    found = clips.find(realdata / "videos")
    with DecodePool(2) as pool:
        made = [clips.read(pool, row, 4, 10.0) for row in found]
    for segments in made:
        assert {row["status"] for row in segments} == {"ok"}
        assert segments[0]["start"] == 0
        assert segments[-1]["end"] == pytest.approx(segments[0]["duration"], abs=0.01)
