"""Damage real files in many ways and extract them all: `python -m tests.data.fuzz_decode
FOLDER_OF_VIDEOS`.

Prints what became of each kind of damage, the time, and whether every good file is whole in the
store. `python -m tests.data.fuzz_decode --flipped 600` has made H.264 files with 1 to 16 flipped
bits instead, and compares what is read of them with the full decode.
"""

import argparse
import collections
import contextlib
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.data import codecs
from tvrkit.data.decoders import FrameSettings
from tvrkit.data.extract import extract, find_videos
from tvrkit.data.prepare import adopt_store
from tvrkit.data.store import FrameStore

HEADER = 4096  # bytes at the beginning; an .mp4 file's index is as often at its end: `flip-tail`


def _flip(data, places):
    for place in places:
        data[place] ^= 1 << (place % 8)
    return data


def _zero(data, rng):
    start = int(rng.integers(len(data)))
    end = min(len(data), start + int(rng.integers(1, len(data) // 2)))
    data[start:end] = bytes(end - start)
    return data


def _cut_out(data, rng):
    start = int(rng.integers(len(data)))
    del data[start : start + int(rng.integers(1, len(data) // 4))]
    return data


DAMAGE = {
    "flip-header": lambda data, rng: _flip(
        data, rng.integers(min(HEADER, len(data)), size=rng.integers(1, 40))
    ),
    "flip-body": lambda data, rng: _flip(data, rng.integers(len(data), size=rng.integers(1, 400))),
    "flip-tail": lambda data, rng: _flip(
        data, len(data) - 1 - rng.integers(HEADER, size=rng.integers(1, 40))
    ),
    "truncated": lambda data, rng: data[: int(rng.integers(1, len(data)))],
    "zeroed": _zero,
    "cut-out": _cut_out,
    "wrong-extension": lambda data, rng: data,
    "empty": lambda data, rng: data[:0],
    "flip-few": lambda data, rng: _flip(
        data, rng.integers(HEADER, len(data), size=rng.choice([1, 1, 2, 4, 16]))
    ),
}

EVERY = tuple(DAMAGE)[:-1]  # the last is for `--flipped`


def damaged_files(good, folder, count, seed, kinds=EVERY):
    """`count` damaged copies, the kinds in turn; the kind begins the name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, files = np.random.default_rng(seed), []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        source = good[int(rng.integers(len(good)))]
        suffix = (
            rng.choice([".txt", ".jpg", ".wmv", ".ts", ""])
            if kind == "wrong-extension"
            else source.suffix
        )
        path = folder / f"{kind}-{number:04d}{suffix}"
        path.write_bytes(DAMAGE[kind](bytearray(source.read_bytes()), rng))
        files.append(path)
    return files


def damaged_stores(good, folder, count, seed):
    """`count` damaged copies of a frame store: bytes of its pages, its whole length kept or not."""
    rng, stores = np.random.default_rng(seed), []
    for number in range(count):
        data = bytearray((good / "data.mdb").read_bytes())
        page = 4096 * int(rng.integers(len(data) // 4096))
        for _ in range(int(rng.integers(1, 12))):
            # headers and the lists of entries stand at the beginning of a page
            data[page + int(rng.integers(64 if number % 2 else 4096))] = int(rng.integers(256))
        if number % 10 == 9:
            del data[int(rng.integers(len(data))) :]
        path = folder / f"store-{number:04d}"
        path.mkdir()
        (path / "data.mdb").write_bytes(data)
        stores.append(path)
    return stores


SOURCES = ("h264_closed.mp4", "h264_closed.mkv", "hevc_open.mp4", "mpeg4_b_frames.mp4")


def attack_videos(folder, count, seed, kinds=EVERY, sources=SOURCES):
    """(kind of damage, whether the file gave frames, whether a reason was given, what is wrong with
    that or "") of each damaged file: its frames are those of the full decode, or it has a
    reason."""
    good = [codecs.make(name, folder) for name in sources]
    damaged = damaged_files(good, folder / "damaged", count, seed, kinds)
    settings = FrameSettings(codecs.SAMPLED)
    for path, (info, frames) in zip(damaged, codecs.by_kit(damaged, settings), strict=True):
        wrong = "" if info.frames or info.reason else "no frames and no reason"
        if info.frames:
            truth, stamps = codecs.decode_all(path)
            chosen = codecs.expected(stamps, codecs.SAMPLED)
            if len(chosen) != len(frames) or codecs.differing(frames, truth[chosen]):
                wrong = "other frames than those of the full decode"
        yield path.stem.rpartition("-")[0], bool(info.frames), bool(info.reason), wrong


def attack_stores(good, folder, count, seed):
    """(number of problems told, what is wrong or "") of each damaged copy of a store: whatever is
    in it, problems are lines, and what is adopted is what was there."""
    for path in damaged_stores(good, folder, count, seed):
        problems, wrong = FrameStore(path).verify(), ""
        if not all(isinstance(problem, str) and problem for problem in problems):
            wrong = f"no lines: {problems}"
        with contextlib.suppress(ValueError, FileNotFoundError):
            source = FrameStore(good)
            rows = adopt_store(path, path.with_suffix(".adopted"), source.video_ids())
            counts = zip(rows["video_id"], rows["frames"], strict=True)
            if any(count not in (0, source.count(video_id)) for video_id, count in counts):
                wrong = "other counts of frames than there were" if not problems else ""
        yield len(problems), wrong


def flipped(count, seed):
    """What became of H.264 files in mp4 with a few flipped bits."""
    found = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        attack = attack_videos(Path(folder), count, seed, ["flip-few"], SOURCES[:1])
        for _, _, reason, wrong in attack:
            silent = "other frames" if wrong else "the frames of the full decode"
            found["a reason" if reason else silent] += 1
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", type=Path, nargs="?", help="folder of good videos")
    parser.add_argument("--flipped", type=int, help="see above")
    parser.add_argument("--files", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=5.0)
    arguments = parser.parse_args()
    if arguments.flipped:
        print(dict(flipped(arguments.flipped, arguments.seed)))
        return
    good = {
        name: path for name, path in find_videos(arguments.videos).items() if path.suffix != ".csv"
    }
    with tempfile.TemporaryDirectory() as folder:
        damaged = damaged_files(
            sorted(good.values()), Path(folder) / "damaged", arguments.files, arguments.seed
        )
        files = {**good, **{path.name: path for path in damaged}}
        start = time.monotonic()
        store = Path(folder) / "frames.lmdb"
        rows = extract(files, store, FrameSettings(12, 224), timeout=arguments.timeout)
        seconds = time.monotonic() - start
        kinds = collections.defaultdict(collections.Counter)
        reasons = collections.Counter()
        for row in rows.to_dict("records"):
            kind = "good" if row["video_id"] in good else row["video_id"].rpartition("-")[0]
            note = "with a note" if row["reason"] else "clean"
            kinds[kind][note if row["status"] == "ok" else "failed"] += 1
            if row["reason"]:
                reasons[
                    "".join("#" if letter.isdigit() else letter for letter in row["reason"])
                ] += 1
        for kind, outcome in sorted(kinds.items()):
            print(f"{kind:16s} {dict(outcome)}")
        for reason, count in reasons.most_common(12):
            print(f"{count:5d}  {reason}")
        whole = rows[
            rows["video_id"].isin(good) & (rows["status"] == "ok") & (rows["frames"] == 12)
        ]
        print(
            f"{len(files)} files in {seconds:.1f} s; good files whole: {len(whole)} of {len(good)}"
        )
        print(f"store: {FrameStore(store).verify() or 'whole'}")


if __name__ == "__main__":
    main()
