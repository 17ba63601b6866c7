import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from tests.data.fuzz_decode import damaged_files
from tests.data.video_files import (
    COUNT,
    indices,
    over_report,
    pictures,
    rotate,
    write_audio,
    write_video,
)

from tvrkit.data.decoders import (
    DecodeError,
    DecodePool,
    FrameSettings,
    decoder_versions,
    read_frames,
)

TWELVE = [4 * segment + 2 for segment in range(12)]  # the middles of twelve segments of 48 frames
FEW = FrameSettings(4)
needs_decord = pytest.mark.skipif(
    "decord" not in decoder_versions(), reason="decord has no wheel for this machine"
)


def children():
    """Ids of this process's child processes."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(child) for file in lists for child in file.read_text().split()}


def read_one(path, decoder="auto"):
    with DecodePool(1, timeout=10.0) as pool:
        ((info, frames),) = pool.run([path], FrameSettings(12, decoder=decoder))
    assert len(frames) == info.frames
    return info


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
        ("a.mkv", {"times": [33 * i for i in range(24)] + [800 + 200 * i for i in range(24)]}),
        ("a.avi", {"codec": "mpeg4"}),
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
        ("a.ts", {}, "mixes up the frames of such containers"),
        ("a.mp4", {"pixels": "yuv420p10le"}, "the pixels are yuv420p10le"),
        ("a.webm", {"codec": "libvpx-vp9", "width": 97, "height": 65}, "width or height is odd"),
    ],
)
def test_decord_reads_what_it_is_right_about_and_refuses_the_rest(tmp_path, name, options, doubt):
    path = write_video(tmp_path / name, **options)
    assert read_one(path).decoder == ("pyav" if doubt else "decord")
    refused = read_one(path, "decord")
    assert (refused.frames == 0) == bool(doubt)
    assert doubt in refused.reason


def test_without_decord_pyav_reads_every_file(tmp_path, monkeypatch):
    (tmp_path / "decord.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "decord", None)
    path = write_video(tmp_path / "a.mp4")
    assert read_one(path).decoder == "pyav"
    assert decoder_versions() == decoder_versions("pyav") == f"PyAV {av.__version__}"
    with pytest.raises(ValueError, match="'decord' is not installed: expected 'auto' or 'pyav'"):
        decoder_versions("decord")


def test_settings_that_are_unknown():
    with pytest.raises(ValueError, match="unknown decoder 'opencv': expected one of auto, decord"):
        FrameSettings(1, decoder="opencv")
    with pytest.raises(ValueError, match="unknown sampling 'middle': expected one of head, random"):
        FrameSettings(1, sampling="middle")


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
        read_frames(tmp_path / "a.mp4", FEW, timeout=10.0)


# Python runs a `sitecustomize` that it finds before anything else: here, in the workers only.
HOSTILE = """
import os, signal, time
import av, decord

def hostile(function, where):
    def wrapped(path, *arguments, **options):
        if f"{where}_hangs" in path:
            time.sleep(1000)
        if f"{where}_crashes" in path:
            os.kill(os.getpid(), signal.SIGSEGV)
        return function(path, *arguments, **options)
    return wrapped

av.open = hostile(av.open, "file")
decord.VideoReader = hostile(decord.VideoReader, "decord")
"""


@needs_decord
def test_a_hang_or_crash_costs_that_worker_only(tmp_path, monkeypatch):
    """Fault injection: workers whose libraries hang or crash at files of certain names."""
    names = ["a", "file_hangs", "b", "decord_hangs", "file_crashes", "c", "decord_crashes", "d"]
    paths = [write_video(tmp_path / f"{name}.mp4", count=8) for name in names]
    (tmp_path / "sitecustomize.py").write_text(HOSTILE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = children()
    with DecodePool(2, timeout=0.7) as pool:
        results = dict(zip(names, pool.run(paths, FEW), strict=True))
        assert len(children() - before) == 2
    outcome = {
        name: (info.frames, info.decoder, info.reason) for name, (info, _) in results.items()
    }
    assert outcome == {
        **dict.fromkeys("abcd", (4, "decord", "")),
        "decord_hangs": (4, "pyav", ""),
        "decord_crashes": (4, "pyav", ""),
        "file_hangs": (0, "", "hangs: stopped after 0.7 s"),
        "file_crashes": (0, "", "crashes the decoder (status -11)"),
    }
    assert children() == before


@needs_decord
def test_leaving_the_pool_ends_workers_that_are_busy(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(HOSTILE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    paths = [write_video(tmp_path / f"{name}.mp4", count=4) for name in ("a", "file_hangs", "b")]
    before, start = children(), time.monotonic()
    with DecodePool(2, timeout=60) as pool:
        info, _ = next(pool.run(paths, FEW))
    assert info.frames == 4
    assert time.monotonic() - start < 30
    assert children() == before


def test_a_worker_that_cannot_start_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text("import no_such_module\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"could not start.*no_such_module"):
        read_frames(tmp_path / "a.mp4", FEW)


def test_a_script_without_a_guard_is_not_run_again(tmp_path):
    """And a worker finds the package and its libraries from any folder."""
    write_video(tmp_path / "a.mp4", count=5)
    script = tmp_path / "script.py"
    script.write_text(
        "from tvrkit.data.decoders import FrameSettings, read_frames\n"
        "print('frames', len(read_frames('a.mp4', FrameSettings(8))))\n"
    )
    run = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (run.stdout, run.returncode) == ("frames 5\n", 0), run.stderr


def test_results_keep_the_order_and_the_pool_is_reusable(tmp_path):
    paths = [write_video(tmp_path / f"{i}.mp4", count=1 + i) for i in range(8)]
    with DecodePool(2) as pool:
        for _ in range(2):
            results = list(pool.run(paths, FrameSettings(100)))
            assert [len(frames) for _, frames in results] == list(range(1, 9))
            assert all(frame.startswith(b"\xff\xd8") for _, frames in results for frame in frames)


MEASURE = """
import resource, sys
from tvrkit.data.decoders import DecodePool, FrameSettings
with DecodePool(1) as pool:
    ((info, _),) = pool.run([sys.argv[1]], FrameSettings(48))
print(info.frames, info.duration, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's")
def test_memory_stays_bounded_for_a_long_video(tmp_path):
    # 350 MB as pictures
    path = write_video(tmp_path / "long.mp4", count=1500, height=240, width=320, gop=250)
    command = [sys.executable, "-c", MEASURE, path]
    frames, duration, megabytes = subprocess.check_output(command, text=True).split()
    assert (frames, duration) == ("48", "50.0")
    assert int(megabytes) < 300


def test_damaged_files_end_in_bounded_time(tmp_path):
    """A small, seeded share of what `fuzz_decode.py` does."""
    good = [write_video(tmp_path / "good.mp4"), write_video(tmp_path / "good.mkv")]
    files = damaged_files(good, tmp_path / "damaged", count=28, seed=1)
    timeout, start = 3.0, time.monotonic()
    with DecodePool(2, timeout) as pool:
        results = [info for info, _ in pool.run([*good, *files], FrameSettings(8))]
    assert time.monotonic() - start < (len(files) + 2) * 2 * (timeout + 1.5)
    assert [info.frames for info in results[:2]] == [8, 8]
    for path, info in zip(files, results[2:], strict=True):
        assert info.frames > 0 or info.reason
        if path.stem.startswith("wrong-extension"):
            assert (info.frames, info.reason) == (8, "")
        if path.stem.startswith("empty"):
            assert info.reason == "empty file"
