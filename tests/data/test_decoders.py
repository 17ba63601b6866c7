"""The pool of decoding processes: what a hang, a crash or a bad start costs."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.fuzz_decode import damaged_files
from tests.data.video_files import needs_decord, write_video
from tvrkit.data.decoders import KEPT, DecodePool, FrameSettings, decoder_versions, read_frames

pytestmark = pytest.mark.slow

FEW = FrameSettings(4)


def children():
    """Ids of this process's child processes."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(child) for file in lists for child in file.read_text().split()}


def test_settings_that_are_unknown():
    with pytest.raises(ValueError, match="decoder: expected one of auto, decord"):
        FrameSettings(1, decoder="opencv")
    with pytest.raises(ValueError, match="sampling: expected one of head, random"):
        FrameSettings(1, sampling="middle")
    for window in ((3.0, 3.0), (-1.0, 3.0)):
        with pytest.raises(ValueError, match="expected 0 <= start < end, in seconds"):
            FrameSettings(1, window=window)


# Python runs a `sitecustomize` that it finds before anything else: here, in the workers only.
HOSTILE = """
import os, signal, time
import av, decord

def hostile(function, where):
    def wrapped(path, *arguments, **options):
        if "file_" in path:
            open(path + ".tries", "ab").write(b"x")
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
        assert 0 < len(children() - before) <= 2  # one that died last has not been replaced
    outcome = {
        name: (info.frames, info.decoder, info.reason) for name, (info, _) in results.items()
    }
    assert results["decord_hangs"][0].why == "decord hangs or crashes"
    assert outcome == {
        **dict.fromkeys("abcd", (4, "decord", "")),
        "decord_hangs": (4, "pyav", ""),
        "decord_crashes": (4, "pyav", ""),
        "file_hangs": (0, "", "hangs: stopped after 0.7 s"),
        "file_crashes": (0, "", "crashes the decoder (status -11)"),
    }
    assert children() == before
    tries = [(tmp_path / f"file_{name}.mp4.tries").stat().st_size for name in ("hangs", "crashes")]
    assert tries == [1, 1]  # decord was never asked: nobody else would do better


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_worker_knows_nothing_of_this_process_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    before = children()
    with DecodePool(1) as pool:
        next(pool.run([write_video(tmp_path / "a.mp4", count=4)], FEW))
        (worker,) = children() - before
        names = {
            entry.partition(b"=")[0].decode()
            for entry in Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
        }
    threads = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    assert {"PYTHONPATH"} <= names - {""} <= {*KEPT, "PYTHONPATH", *threads}


def test_versions_of_ffmpeg_are_told():
    assert re.fullmatch(
        r"(decord \S+ \(libavcodec [\w. ]+\), )?PyAV \S+ \(libavcodec [\w. ]+\)", decoder_versions()
    )


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
