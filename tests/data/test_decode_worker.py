"""What the decoding program makes of each kind of file, seen from outside."""

import itertools
import socket
import struct
import subprocess
import sys

import av
import numpy as np
import pytest

from tests.data import codecs, fuzz_decode
from tests.data.video_files import (
    COUNT,
    indices,
    needs_decord,
    over_report,
    pictures,
    rotate,
    write_audio,
    write_video,
)
from tvrkit import files
from tvrkit.data.decoders import (
    DecodeError,
    DecodePool,
    FrameSettings,
    decoder_versions,
    read_frames,
)

SAMPLED = codecs.SAMPLED
TWELVE = [4 * segment + 2 for segment in range(12)]  # the middles of twelve segments of 48 frames


def read_one(path, decoder="auto"):
    with DecodePool(1, timeout=10.0) as pool:
        ((info, frames),) = pool.run([path], FrameSettings(12, decoder=decoder))
    assert len(frames) == info.frames
    return info


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """A row per made file, see `codecs.compare`."""
    return codecs.compare(tmp_path_factory.mktemp("matrix")).set_index("file")


@needs_decord
@pytest.mark.parametrize("name", codecs.MATRIX)
def test_sampled_frames_are_those_of_the_full_decode(matrix, name):
    row = matrix.loc[name]
    assert row["frames"] > SAMPLED
    assert row[["kit right", "kit wrong", "kit refused"]].tolist() == [SAMPLED, 0, 0]
    told = ("turned_45", "h264_zeros", "cut_start", "h264_cut_end.mkv")  # a cut .ts has no header
    assert bool(row["reason"]) == any(part in name for part in told)
    assert row["why"]
    if row["read by"] == "decord":
        assert row["decord right"] == SAMPLED


def test_the_table_of_before_and_after_has_every_kind_and_its_page_says_the_same():
    table = codecs.read(files.ASSETS / "decoders.csv")
    assert table["file"].tolist() == list(codecs.MATRIX)
    text = (files.PACKAGE.parent / "docs/decoders.md").read_text(encoding="utf-8")
    assert text == codecs.page(table)


@needs_decord
def test_decord_would_be_wrong_about_many_kinds(matrix):
    """The reason for choosing: if this fails, decord has become better, or is no longer asked."""
    wrong = set(matrix.index[matrix["decord wrong"] > 0])
    assert wrong >= {
        *("h264_open.mp4", "h264_intra_refresh.mp4", "hevc_open.mp4", "hevc_open.mkv"),
        *("mpeg2.mp4", "mpeg4_b_frames.mp4", "mpeg4_b_frames.mkv", "xvid.mkv", "h264.avi"),
    }
    assert (matrix["read by"] == "decord").sum() >= 6


def test_damaged_files_give_the_frames_of_the_full_decode_or_a_reason(tmp_path):
    """Bits flipped in the stream: decord conceals that, so its word is not enough."""
    outcomes = list(fuzz_decode.attack_videos(tmp_path, 32, seed=0, kinds=["flip-body"]))
    assert [wrong for *_, wrong in outcomes if wrong] == []
    assert sum(reason for _, _, reason, _ in outcomes) > 20


@needs_decord
def test_a_picture_that_is_concealed_without_an_error_is_noticed(tmp_path):
    """A bit near the end of a coded picture can end it early. No error tells of it: the decoders
    fill in the rest, each in its own way, and say so at level INFO."""
    coding, found = codecs.MATRIX["h264_closed.mp4"][0], []
    good = codecs.write(tmp_path / "good.mp4", codecs.pictures(12, 64, 96), **coding)
    data = good.read_bytes()
    with av.open(str(good)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    for number, (end, back, bit) in enumerate(itertools.product(ends, range(1, 9), range(8))):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(
            data[: end - back] + bytes([data[end - back] ^ 1 << bit]) + data[end - back + 1 :]
        )
        broken, levels = codecs.told(path)
        if broken and all(level >= av.logging.INFO for level in levels):
            found.append(path)
    assert len(found) > 5
    for info, _ in codecs.by_kit(found, FrameSettings(12)):
        assert info.reason == "damaged: 1 of 12 frames are broken"


def test_a_window_takes_frames_of_its_time_only(tmp_path):
    """DiDeMo's first seconds, in both ways of reading, at a constant rate and at a variable one."""
    path = write_video(tmp_path / "a.mp4")
    late = write_video(tmp_path / "b.mp4", times=[40 * i if i < 30 else 200 * i for i in range(48)])
    for decoder in ("auto", "pyav"):
        window = FrameSettings(5, decoder=decoder, window=(0.5, 1.0))
        assert indices(read_frames(path, window)) == [16, 19, 22, 25, 28]
        window = FrameSettings(64, decoder=decoder, window=(0.0, 1.0))
        assert indices(read_frames(path, window)) == list(range(30))
        assert indices(read_frames(late, window)) == list(range(25))
    assert read_one(path).duration == 1.6
    with pytest.raises(DecodeError, match="no frame can be decoded from 2 to 3 s: the last is at"):
        read_frames(path, FrameSettings(5, window=(2.0, 3.0)))


def test_a_picture_that_claims_to_be_huge_is_refused_before_it_is_made(tmp_path):
    path = codecs.make("gif.gif", tmp_path)
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", 9000, 9000)  # the size of the screen
    path.write_bytes(data)
    assert read_one(path).reason == "too large: 9000 x 9000 pixels, expected at most 67,108,864"


CONFINED = """
import socket, sys
from tvrkit.data.decode_worker import LOG_LIMIT, MEMORY_LIMIT, confine
confine()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("privileges", status["NoNewPrivs"].strip())
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)
    print("network yes")
except OSError:
    print("network no")
try:
    bytearray(2 * MEMORY_LIMIT)
    print("memory yes")
except MemoryError:
    print("memory no")
try:
    with open(sys.argv[2], "wb") as file:
        file.write(bytes(2 * LOG_LIMIT))
    print("files yes")
except OSError:
    print("files no")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")
def test_a_worker_has_no_network_no_rights_to_gain_and_little_memory(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", CONFINED, str(server.getsockname()[1]), tmp_path / "file"]
        said = subprocess.check_output(command, text=True, timeout=60).splitlines()
    assert {"privileges 1", "memory no", "files no"} <= set(said)
    if subprocess.run(["unshare", "--user", "--net", "true"], check=False).returncode == 0:
        assert "network no" in said  # where the kernel lets one leave it


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("plain.mov", {}),
        ("plain.mkv", {}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("vp9.webm", {"codec": "libvpx-vp9"}),
        ("transport.ts", {}),
        ("program.mpg", {"codec": "mpeg2video"}),
        ("ten_bit.mp4", {"pixels": "yuv420p10le"}),
        ("full_chroma.mp4", {"pixels": "yuv444p"}),
        ("odd.mkv", {"pixels": "yuv444p", "width": 97, "height": 65}),
        ("one_key.mp4", {"gop": 1000}),
        ("wrong_extension.jpg", {"format": "mp4"}),
        ("no_extension", {"format": "matroska"}),
    ],
)
def test_every_container_gives_the_frames_asked_for(tmp_path, name, options):
    path = write_video(tmp_path / name, **options)
    frames = read_frames(path, FrameSettings(12))
    assert frames.shape == (12, options.get("height", 64), options.get("width", 96), 3)
    assert frames.dtype == np.uint8
    assert indices(frames) == TWELVE
    assert indices(read_frames(path, FrameSettings(3, 32, "tail"))) == [45, 46, 47]


@needs_decord
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("one_key.mov", {"gop": 1000}),
        ("b.mp4", {"times": [33 * i for i in range(24)] + [800 + 200 * i for i in range(24)]}),
    ],
)
def test_both_decoders_give_the_same_frames(tmp_path, name, options):
    path = write_video(tmp_path / name, **options)
    names = ("decord", "pyav")
    assert tuple(read_one(path, name).decoder for name in names) == names
    decord, pyav = (
        read_frames(path, FrameSettings(12, decoder=name)).astype(int) for name in names
    )
    assert decord.shape == (12, 64, 96, 3)
    assert np.abs(decord - pyav).max() <= 1


@needs_decord
@pytest.mark.parametrize(
    ("name", "options", "doubt"),
    [
        ("a.mp4", {}, ""),
        ("a.ts", {}, "the container is mpegts"),
        ("a.mp4", {"codec": "mpeg4"}, "the codec is mpeg4"),
        ("a.mp4", {"pixels": "yuv420p10le"}, "the pixels are yuv420p10le"),
        ("a.webm", {"codec": "libvpx-vp9"}, "the codec is vp9"),
    ],
)
def test_decord_reads_what_it_is_right_about_and_refuses_the_rest(tmp_path, name, options, doubt):
    path = write_video(tmp_path / name, **options)
    read = read_one(path)
    assert (read.decoder, read.why) == (
        ("pyav", doubt) if doubt else ("decord", "H.264, every key frame stands alone")
    )
    refused = read_one(path, "decord")
    assert (refused.frames == 0) == bool(doubt)
    assert doubt in refused.reason


def test_without_decord_pyav_reads_every_file(tmp_path, monkeypatch):
    (tmp_path / "decord.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "decord", None)
    path = write_video(tmp_path / "a.mp4")
    assert read_one(path).decoder == "pyav"
    assert decoder_versions() == decoder_versions("pyav")
    assert decoder_versions().startswith(f"PyAV {av.__version__} (libavcodec ")
    with pytest.raises(ValueError, match="'auto' or 'pyav', got 'decord'"):
        decoder_versions("decord")


def test_frames_are_spread_over_time_where_the_rate_varies(tmp_path):
    times = [33 * i for i in range(24)] + [800 + 200 * i for i in range(24)]
    path = write_video(tmp_path / "a.mkv", times=times)
    end = times[-1] + times[-1] / (COUNT - 1)
    expected = []
    for segment in range(12):
        slot = int((segment + 0.5) * COUNT / 12)  # of 48 equal spans of time
        moment = (slot + 0.5) * end / COUNT
        expected.append(max(i for i in range(COUNT) if times[i] <= moment))
    assert indices(read_frames(path, FrameSettings(12))) == expected
    assert indices(read_frames(path, FrameSettings(12, decoder="pyav"))) == expected
    assert expected != TWELVE


@pytest.mark.parametrize(("turns", "corner"), [(1, (0, -1)), (2, (-1, -1)), (3, (-1, 0))])
def test_rotation_is_applied(tmp_path, turns, corner):
    path = rotate(write_video(tmp_path / "a.mp4"), turns)
    info = read_one(path)
    assert (info.width, info.height) == ((96, 64) if turns == 2 else (64, 96))
    frame = read_frames(path, FrameSettings(12, 32))[0].astype(int)
    assert frame.shape == ((32, 48, 3) if turns == 2 else (48, 32, 3))
    inside = frame[2 * corner[0] + 1, 2 * corner[1] + 1]
    assert inside[0] > 200
    assert max(inside[1:]) < 60


def test_short_videos_give_all_they_have(tmp_path):
    one, five = (write_video(tmp_path / f"{count}.mp4", count=count) for count in (1, 5))
    assert read_frames(one, FrameSettings(8)).shape == (1, 64, 96, 3)
    assert indices(read_frames(five, FrameSettings(8))) == [0, 1, 2, 3, 4]


def test_size_scales_down_and_never_up(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    assert read_frames(path, FrameSettings(1, 32)).shape == (1, 32, 48, 3)
    assert read_frames(path, FrameSettings(1, 500)).shape == (1, 64, 96, 3)


def test_cut_off_files_give_what_is_there_and_say_so(tmp_path):
    path = write_video(tmp_path / "a.mp4", height=128, width=192, flags={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    info = read_one(path)
    assert 0 < info.frames <= 12
    assert info.reason.startswith("cut off: ")
    assert "of 48 frames are there" in info.reason


def test_over_reported_frames_do_not_hang(tmp_path):
    path = over_report(write_video(tmp_path / "a.avi", codec="mpeg4"))
    info = read_one(path)
    assert (info.frames, info.decoder) == (12, "pyav")
    assert info.reason == "cut off: 48 of 10000 frames are there"
    assert indices(read_frames(path, FrameSettings(12))) == TWELVE


def _half(path):
    write_video(path)
    path.write_bytes(path.read_bytes()[:2000])  # the index at the end is gone


def _picture(path):
    av.VideoFrame.from_ndarray(pictures(1)[0]).to_image().save(path, format="PNG")


def _list_of_files(path):
    write_video(path.parent / "good.ts")
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ngood.ts\n#EXT-X-ENDLIST\n")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.touch(), "empty file"),
        (lambda path: codecs.cut_start(write_video(path, format="mpegts"), 1000), "empty file"),
        (lambda path: path.write_text("hello " * 100), "can't be read: Invalid data"),
        (lambda path: path.write_bytes(bytes(5000)), "can't be read"),
        (lambda path: path.mkdir(), "can't be read: Is a directory"),
        (lambda path: None, "can't be read: No such file or directory"),
        (lambda path: write_audio(path), "no video stream, only audio"),
        (lambda path: write_video(path, count=0), "can't be read|no "),
        (_half, "can't be read: Invalid data"),
        (_picture, "no video"),
        (_list_of_files, "no video|can't be read"),
    ],
)
def test_hopeless_files_have_a_reason(tmp_path, make, reason):
    make(tmp_path / "a.mp4")
    with pytest.raises(DecodeError, match=reason):
        read_frames(tmp_path / "a.mp4", FrameSettings(4), timeout=10.0)
