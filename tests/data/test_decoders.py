import time
from pathlib import Path

import av
import numpy as np
import pytest
from fuzz_decode import damaged_files
from video_files import COUNT, indices, over_report, pictures, rotate, write_audio, write_video

from tvrkit.data import decode_worker
from tvrkit.data.decoders import DecodeError, DecodePool, Job, _Worker, read_frames

TWELVE = [4 * segment + 2 for segment in range(12)]  # the middles of twelve segments of 48 frames


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
    frames = read_frames(path, 12)
    assert frames.shape == (12, options.get("height", 64), options.get("width", 96), 3)
    assert frames.dtype == np.uint8
    assert indices(frames) == TWELVE
    assert indices(read_frames(path, 3, "tail", size=32)) == [45, 46, 47]


def test_both_decoders_agree(tmp_path):
    job = Job(str(write_video(tmp_path / "a.mp4")), 12)
    read = {}
    for decoder in (decode_worker.BEST, decode_worker.SECOND):
        worker = _Worker(20.0)
        worker.send(0, job, decoder)
        info, blobs = worker.receive()
        worker.close()
        read[info["decoder"]] = np.stack(
            [np.frombuffer(b, np.uint8).reshape(info["shape"]) for b in blobs]
        )
    assert read.keys() == {"decord", "pyav"}
    assert read["decord"].shape == (12, 64, 96, 3)
    assert np.abs(read["decord"].astype(int) - read["pyav"]).max() <= 1


def test_frames_are_spread_over_time_where_the_rate_varies(tmp_path):
    times = [33 * i for i in range(24)] + [800 + 200 * i for i in range(24)]
    path = write_video(tmp_path / "a.mkv", times=times)
    end = times[-1] + times[-1] / (COUNT - 1)
    expected = []
    for segment in range(12):
        slot = int((segment + 0.5) * COUNT / 12)  # of 48 equal spans of time
        moment = (slot + 0.5) * end / COUNT
        expected.append(max(i for i in range(COUNT) if times[i] <= moment))
    assert indices(read_frames(path, 12)) == expected
    assert expected != TWELVE


@pytest.mark.parametrize(("turns", "corner"), [(1, (0, -1)), (2, (-1, -1)), (3, (-1, 0))])
def test_rotation_is_applied(tmp_path, turns, corner):
    path = rotate(write_video(tmp_path / "a.mp4"), turns)
    with DecodePool(1) as pool:
        ((info, _),) = pool.run([Job(str(path), 1)])
    assert (info["width"], info["height"]) == ((96, 64) if turns == 2 else (64, 96))
    frame = read_frames(path, 12, size=32)[0].astype(int)
    assert frame.shape == ((32, 48, 3) if turns == 2 else (48, 32, 3))
    inside = frame[2 * corner[0] + 1, 2 * corner[1] + 1]
    assert inside[0] > 200
    assert max(inside[1:]) < 60


def test_short_videos_give_all_they_have(tmp_path):
    assert read_frames(write_video(tmp_path / "one.mp4", count=1), 8).shape == (1, 64, 96, 3)
    assert indices(read_frames(write_video(tmp_path / "five.mp4", count=5), 8)) == [0, 1, 2, 3, 4]


def test_size_scales_down_and_never_up(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    assert read_frames(path, 1, size=32).shape == (1, 32, 48, 3)
    assert read_frames(path, 1, size=500).shape == (1, 64, 96, 3)


def _info(path, **options):
    with DecodePool(1, 10.0) as pool:
        ((info, blobs),) = pool.run([Job(str(path), 12, **options)])
    assert len(blobs) == info["frames"]
    return info


def test_cut_off_files_give_what_is_there_and_say_so(tmp_path):
    path = write_video(tmp_path / "a.mp4", height=128, width=192, flags={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    info = _info(path)
    assert 0 < info["frames"] <= 12
    assert info["reason"].startswith("cut off: ")
    assert "of 48 frames are there" in info["reason"]


def test_over_reported_frames_do_not_hang(tmp_path):
    info = _info(over_report(write_video(tmp_path / "a.avi", codec="mpeg4")))
    assert (info["frames"], info["decoder"]) == (12, "pyav")
    assert info["reason"] == "cut off: 48 of 10000 frames are there"
    assert indices(read_frames(tmp_path / "a.avi", 12)) == TWELVE


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
        read_frames(tmp_path / "a.mp4", 4, timeout=10.0)


HOSTILE = """
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("worker", {worker!r})
worker = sys.modules["worker"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)

def hostile(function, where):
    def wrapped(path, *arguments):
        if f"{{where}}_hangs" in path:
            time.sleep(1000)
        if f"{{where}}_crashes" in path:
            os.kill(os.getpid(), signal.SIGSEGV)
        return function(path, *arguments)
    return wrapped

worker._probe = hostile(worker._probe, "file")
worker._by_decord = hostile(worker._by_decord, "decord")
worker._serve(worker.Connection(int(sys.argv[1])), float(sys.argv[2]))
"""


def test_a_hang_or_crash_costs_that_worker_only(tmp_path, monkeypatch):
    """Fault injection: a worker whose libraries hang or crash at files of certain names."""
    script = tmp_path / "hostile.py"
    script.write_text(HOSTILE.format(worker=decode_worker.__file__))
    monkeypatch.setattr(decode_worker, "__file__", str(script))
    names = ["a", "file_hangs", "b", "decord_hangs", "file_crashes", "c", "decord_crashes", "d"]
    paths = [str(write_video(tmp_path / f"{name}.mp4", count=8)) for name in names]
    with DecodePool(2, timeout=0.7) as pool:
        results = dict(zip(names, pool.run([Job(path, 4) for path in paths]), strict=True))
        processes = [worker.process for worker in pool.workers]
    told = {
        name: (info["frames"], info["decoder"], info["reason"])
        for name, (info, _) in results.items()
    }
    assert told == {
        **dict.fromkeys("abcd", (4, "decord", "")),
        "decord_hangs": (4, "pyav", ""),
        "decord_crashes": (4, "pyav", ""),
        "file_hangs": (0, "", "hangs: stopped after 0.7 s"),
        "file_crashes": (0, "", "crashes the decoder (status -11)"),
    }
    assert all(process.poll() is not None for process in processes)


def test_a_worker_that_cannot_start_is_an_error(tmp_path, monkeypatch):
    broken = tmp_path / "worker.py"
    broken.write_text("import no_such_module\n")
    monkeypatch.setattr(decode_worker, "__file__", str(broken))
    with pytest.raises(RuntimeError, match=r"could not start.*no_such_module"):
        read_frames(tmp_path / "a.mp4", 1)


def test_results_keep_the_order_and_the_pool_is_reusable(tmp_path):
    paths = [str(write_video(tmp_path / f"{i}.mp4", count=1 + i)) for i in range(8)]
    with DecodePool(2) as pool:
        for _ in range(2):
            results = list(pool.run([Job(path, 100, quality=90) for path in paths]))
            assert [len(blobs) for _, blobs in results] == list(range(1, 9))
            assert all(blob.startswith(b"\xff\xd8") for _, blobs in results for blob in blobs)


def test_memory_stays_bounded_for_a_long_video(tmp_path):
    path = write_video(
        tmp_path / "long.mp4", count=1500, height=240, width=320, gop=250
    )  # 350 MB as pictures
    with DecodePool(1) as pool:
        ((info, _),) = pool.run([Job(str(path), 48, quality=90)])
        status = Path(f"/proc/{pool.workers[0].process.pid}/status").read_text()
    assert (info["frames"], info["duration"]) == (48, 50.0)
    assert int(status.split("VmHWM:")[1].split()[0]) < 300 * 1024


def test_damaged_files_end_in_bounded_time(tmp_path):
    """A small, seeded share of what `fuzz_decode.py` does."""
    good = [write_video(tmp_path / "good.mp4"), write_video(tmp_path / "good.mkv")]
    files = damaged_files(good, tmp_path / "damaged", count=28, seed=1)
    timeout, start = 3.0, time.monotonic()
    with DecodePool(2, timeout) as pool:
        results = [
            info
            for info, _ in pool.run([Job(str(path), 8, quality=90) for path in [*good, *files]])
        ]
    assert time.monotonic() - start < (len(files) + 2) * 2 * (timeout + 1.5)
    assert [info["frames"] for info in results[:2]] == [8, 8]
    for path, info in zip(files, results[2:], strict=True):
        assert (info["frames"] > 0) or info["reason"]
        if path.stem.startswith("wrong-extension"):
            assert (info["frames"], info["reason"]) == (8, "")
        if path.stem.startswith("empty"):
            assert info["reason"] == "empty file"
