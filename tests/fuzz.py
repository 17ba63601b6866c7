"""Mutated inputs of every kind that strangers send: `python -m tests.fuzz [COUNT] [SEED]`.

Videos, stores, annotations, checkpoints and run folders are made, damaged by chance (bits, cuts,
insertions, fields of another type, files that are gone) and opened as the kit opens them. What may
become of one:

refused   an error of one line
noticed   it has a reason in its row, or is left out with one
same      it was read, and what was read is what there was before the damage
untold    it is another whole input now, and nothing in it says so: a coded picture or a word with
          other bits, in a format without checksums, or a run that was sealed again. What was read
          is what stands there
OTHER     it was read as something else, though something in it, or a hash, could have told
FELL      a traceback, several lines, the process ended or hung, or something else was lost

All but the last two are held.
"""

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import pandas as pd
import simplejpeg
import torch

from tests.data import codecs
from tests.data.layouts import put, put_msrvtt
from tests.data.video_files import write_video
from tests.fakes import finished_run
from tests.models.small_methods import make_glscl, make_hmmc
from tests.models.test_official import HMMC_NAMES, released
from tvrkit import files
from tvrkit.data import manifest
from tvrkit.data.annotations import load_annotations
from tvrkit.data.decoders import FrameSettings
from tvrkit.data.extract import extract
from tvrkit.data.manifest import Manifest
from tvrkit.data.splits import set_hash
from tvrkit.data.store import FrameStore
from tvrkit.inspection import Diagnostics
from tvrkit.models import checkpoints, official
from tvrkit.reporting import pages
from tvrkit.training import runs
from tvrkit.training.card import diagnostics, write_card

LIMIT = 60  # seconds for one input
CAREFUL = "crccheck+bitstream+buffer+careful"
REFUSED, NOTICED, SAME, UNTOLD = "refused", "noticed", "same", "untold"
OTHER, FELL = "OTHER", "FELL"
VALUES = [None, -1, 0, 10**30, 1.5, float("inf"), "", "../x", "\x1b[2J", "<b>", "x" * 10**5, [], {}]
TOKENS = {"-a_b_1_2": [["a", "dog"], ["it", "runs"]], "c_3_4": [["a", "cat"]]}


# How an input is damaged
#  ------------------------------------------------------------------------------------------------


def flip(data: bytearray, chance: random.Random) -> bytes:
    """One bit to sixteen, anywhere."""
    for _ in range(chance.choice([1, 1, 2, 16])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def flip_head(data: bytearray, chance: random.Random) -> bytes:
    """A byte of the first 200: formats keep there what they are."""
    data[chance.randrange(min(200, len(data)))] = chance.randrange(256)
    return bytes(data)


def flip_tail(data: bytearray, chance: random.Random) -> bytes:
    """A byte of the last 200: a zip archive keeps its directory there."""
    data[-1 - chance.randrange(min(200, len(data)))] = chance.randrange(256)
    return bytes(data)


def cut(data: bytearray, chance: random.Random) -> bytes:
    """The end is missing."""
    return bytes(data[: chance.randrange(len(data))])


def take_out(data: bytearray, chance: random.Random) -> bytes:
    """A piece from the middle is missing."""
    start = chance.randrange(len(data))
    return bytes(data[:start] + data[start + chance.randrange(1, 1 + len(data) // 4) :])


def put_in(data: bytearray, chance: random.Random) -> bytes:
    """Bytes of chance stand between."""
    start = chance.randrange(len(data))
    return bytes(data[:start]) + chance.randbytes(chance.randrange(1, 64)) + bytes(data[start:])


def zero(data: bytearray, chance: random.Random) -> bytes:
    """A stretch was never written."""
    start = chance.randrange(len(data))
    end = min(len(data), start + chance.randrange(1, 1 + len(data) // 2))
    return bytes(data[:start]) + bytes(end - start) + bytes(data[end:])


def change_field(data: bytearray, chance: random.Random) -> bytes:
    """A field of a JSON file, or of a line of one, gets another value, or is gone."""
    text = data.decode("utf-8", "replace")
    lines = text.split("\n") if text.count("\n{") else [text]
    at = chance.randrange(len(lines))
    try:
        value = json.loads(lines[at])
    except ValueError:
        return flip(data, chance)
    inner = value
    while isinstance(inner, dict | list) and inner:
        key = chance.choice([*inner]) if isinstance(inner, dict) else chance.randrange(len(inner))
        if isinstance(inner[key], dict | list) and inner[key] and chance.random() < 0.8:
            inner = inner[key]
            continue
        if chance.random() < 0.2:
            del inner[key]
        else:
            inner[key] = chance.choice(VALUES)
        break
    lines[at] = json.dumps(value)
    return "\n".join(lines).encode()


DAMAGE = [flip, flip, flip_head, flip_tail, cut, take_out, put_in, zero, lambda data, chance: b""]


def damage(path: Path, chance: random.Random) -> None:
    """Damage one file, or remove it."""
    data = bytearray(path.read_bytes())
    if chance.random() < 0.03 or not data:
        path.unlink()
        return
    is_text = path.suffix in (".json", ".jsonl")
    how = change_field if is_text and chance.random() < 0.5 else chance.choice(DAMAGE)
    path.write_bytes(how(data, chance))


# What is opened: a function that makes the good input, and returns one that attacks it
#  ------------------------------------------------------------------------------------------------


def stores(folder: Path):
    """A prepared data set: its tables, its card, its frames."""
    videos = {name: write_video(folder / f"{name}.mp4", count=8) for name in "abc"}
    rows = extract(videos, folder / "good" / "frames.lmdb", FrameSettings(4)).assign(split="test")
    captions = [
        {"caption_id": f"{name}{number}", "video_id": name, "caption": f"{name} {number} 猫"}
        for name in videos
        for number in range(2)
    ]
    table = pd.DataFrame(captions).assign(language="en", split="test")
    good = manifest.write(folder / "good", table, rows, {"protocol": "mine"})
    names = ["captions.jsonl", "videos.jsonl", "card.json", "frames.lmdb/data.mdb"]

    def attack(number: int, chance: random.Random) -> str:
        copy = folder / f"copy{number}"
        shutil.copytree(good.root, copy)
        damage(copy / names[number % len(names)], chance)
        try:
            with ProcessPoolExecutor(1, get_context("fork")) as process:  # it might be ended
                return process.submit(read_store, copy, good.root).result()
        finally:
            shutil.rmtree(copy)

    return attack


def read_store(copy: Path, root: Path) -> str:
    """What is read of a prepared data set beside the good one."""
    opened, good = Manifest.open(copy), Manifest.open(root)
    equal = opened.captions.equals(good.captions) and opened.videos.equals(good.videos)
    if problems := opened.frames.verify():
        return NOTICED if all(map(one_line, problems)) else FELL
    for name in good.videos["video_id"]:
        read, expected = (each.frames.read(name, range(4)) for each in (opened, good))
        equal &= np.array_equal(read, expected)
    unsealed = [files.sealed(each.card) for each in (opened, good)]  # the seal itself may be gone
    return SAME if equal and unsealed[0] == unsealed[1] else OTHER


def annotations(folder: Path):
    """Community layouts: JSON, CSV, a pickle, lists of ids."""
    lists = {"train_list__txt": "-a_b_1_2\n", "val_list__txt": "", "test_list__txt": "c_3_4\n"}
    (folder / "msrvtt").mkdir()
    (folder / "msvd").mkdir()
    put_msrvtt(folder / "msrvtt")
    put(folder / "msvd", **lists)
    (folder / "msvd" / "raw-captions.pkl").write_bytes(pickle.dumps(TOKENS))
    sources = sorted(path for name in ("msrvtt", "msvd") for path in (folder / name).iterdir())
    sources += [folder / "msvd" / "raw-captions.pkl"] * 3
    splits = {"msrvtt": ["train", "test"], "msvd": ["train", "test"]}
    good = {name: load_annotations(name, folder / name, splits=splits[name]) for name in splits}

    def attack(number: int, chance: random.Random) -> str:
        source = sources[number % len(sources)]
        name, copy = source.parent.name, folder / f"copy{number}"
        shutil.copytree(source.parent, copy)
        damage(copy / source.name, chance)
        try:
            read, expected = load_annotations(name, copy, splits=splits[name]), good[name]
            if read.equals(expected):
                return SAME
            # where a protocol is known `check_splits` compares counts and ids; words it cannot
            told = read.attrs["notes"] != expected.attrs["notes"] or counted(read) != counted(
                expected
            )
            return NOTICED if told else UNTOLD
        finally:
            shutil.rmtree(copy)

    return attack


def counted(captions: pd.DataFrame) -> list:
    """What `protocols.csv` knows of a protocol."""
    groups = captions.groupby("split")["video_id"]
    return [groups.size().to_dict(), groups.agg(set_hash).to_dict()]


def weights(folder: Path):
    """Checkpoints of the kit, and of released codes."""
    ours, theirs = make_glscl(seed=1), released(make_hmmc(), HMMC_NAMES)
    checkpoints.save(ours, folder / "good.safetensors")
    torch.save(theirs, folder / "good.bin")
    expected = {
        ".safetensors": checkpoints.digest(ours.state_dict()),
        ".bin": checkpoints.digest(official.load_official("hmmc", theirs).state_dict()),
    }

    def attack(number: int, chance: random.Random) -> str:
        suffix = [".safetensors", ".bin"][number % 2]
        copy = folder / f"copy{number}{suffix}"
        shutil.copy(folder / f"good{suffix}", copy)
        damage(copy, chance)
        try:
            if suffix == ".bin":
                method = official.load_official("hmmc", copy)
            else:
                method = checkpoints.load(make_glscl(), copy)
            return SAME if checkpoints.digest(method.state_dict()) == expected[suffix] else OTHER
        finally:
            copy.unlink(missing_ok=True)

    return attack


def run_folders(folder: Path):
    """Finished runs: one is damaged, and in every third case sealed again, as its maker could; the
    other must stand in the table."""
    os.environ["TVRKIT_HOME"] = str(folder)
    honest, other = finished_run("honest"), finished_run("other", skill=9.0)
    files.write_text(other.folder / "curve.csv", "epoch,split,score\n0,val,1.0\n1,val,2.0\n")
    write_card(other.folder, other.card)
    Diagnostics(area=(0.5, np.nan, 0.75)).save(other.folder / "diagnostics_04.json")
    saved = folder / "saved"
    shutil.copytree(other.folder, saved)
    scores = {run.recipe: run.metrics["t2v R@1"] for run in (honest, other)}
    names = sorted(path.name for path in saved.iterdir())

    def attack(number: int, chance: random.Random) -> str:
        shutil.rmtree(other.folder)
        shutil.copytree(saved, other.folder)
        damage(other.folder / names[number % len(names)], chance)
        if number % 3 == 0:
            with contextlib.suppress(Exception):  # what is damaged too much stays so
                card = json.loads((other.folder / "run.json").read_text())
                write_card(other.folder, card)
                area = other.folder / "diagnostics_04.json"
                numbers = json.loads(area.read_text()).get("numbers", {})
                files.write_json(area, diagnostics(other.folder, numbers))
        noted = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stderr(noted):
            warnings.simplefilter("ignore")
            pages.write_index("mine")
            pages.write_leaderboard()
            found = {run.recipe: run.metrics["t2v R@1"] for run in runs.find("mine")}
        if found.get("honest") != scores["honest"]:
            return FELL
        # without its card a run is not finished, and said to be so by `pages.write_index`
        if "other" not in found:
            return NOTICED if one_line(runs.Run(other.folder).damage()) else FELL
        every = runs.Run(other.folder).damage(every=True, redraw=True)
        if every or found != scores:
            return NOTICED if every else FELL
        return SAME if number % 3 else UNTOLD

    return attack


def videos(folder: Path, count: int, chance: random.Random) -> Counter:
    """All at once, as a folder of videos is read; good ones among them."""
    codings = [("mp4", {}), ("mkv", {}), ("mp4", {"codec": "mpeg4"}), ("avi", {"codec": "mjpeg"})]
    good = []
    for number, (suffix, coding) in enumerate(codings):
        coding |= {"pixels": "yuvj420p"} if coding.get("codec") == "mjpeg" else {}
        good.append(write_video(folder / f"good{number}.{suffix}", count=24, **coding))
    given = {path.stem: path for path in good}
    for number in range(count):
        source = good[number % len(good)]
        copy = given[f"m{number:04d}"] = folder / f"m{number:04d}{source.suffix}"
        shutil.copy(source, copy)
        damage(copy, chance)
    rows = extract(given, folder / "frames.lmdb", FrameSettings(6), timeout=10.0)
    store = FrameStore(folder / "frames.lmdb")
    found: Counter = Counter()
    whole = rows.set_index("video_id").loc[[path.stem for path in good]]
    if len(rows) != len(given) or store.verify() or not (whole["frames"] == 6).all():
        return Counter({FELL: count})
    truth = {path.suffix + str(path.stem): store.read(path.stem, range(6)) for path in good}
    pictures = list(truth.values())
    for number, row in enumerate(row for row in rows.itertuples() if row.video_id[0] == "m"):
        if row.status == "failed" or row.reason:
            found[NOTICED if one_line(row.reason) else FELL] += 1
            continue
        read = store.read(row.video_id, range(row.frames))
        if np.array_equal(read, pictures[number % len(good)]):
            found[SAME] += 1
        else:
            found[UNTOLD if is_another(given[row.video_id], read) else OTHER] += 1
    return found


def is_another(path: Path, read: np.ndarray) -> bool:
    """Whether the frames are those of a full decode by FFmpeg, which finds nothing wrong with the
    file, careful as it can be."""
    with av.logging.Capture() as said, av.open(str(path)) as container:
        coder = container.streams.video[0].codec_context
        coder.thread_count, coder.options = 1, {"err_detect": CAREFUL}
        frames, stamps = [], []
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24", interpolation="BICUBIC"))
            stamps.append(frame.pts)
    chosen = codecs.expected(stamps, 6)
    jpegs = [simplejpeg.encode_jpeg(frames[at], quality=90) for at in chosen]
    right = np.array([simplejpeg.decode_jpeg(jpeg) for jpeg in jpegs]).astype(int)
    told = [text for _, name, text in said if name != "swscaler"]  # its pixels are of an old name
    return not told and right.shape == read.shape and np.abs(right - read).mean() < 1


# The run
#  ------------------------------------------------------------------------------------------------


def one_line(text: str) -> bool:
    """Whether it is a reason that a terminal shows on one line."""
    return bool(text) and "\n" not in text and len(text) < 3000


def hung(*_):
    raise TimeoutError(f"more than {LIMIT} s")


def outcome(attack, number: int, chance: random.Random) -> tuple[str, str]:
    """What became of an input, and the error."""
    signal.alarm(LIMIT)
    try:
        return attack(number, chance), ""
    except (ValueError, FileNotFoundError, KeyError) as error:
        text = error.args[0] if isinstance(error, KeyError) else str(error)
        return (REFUSED if one_line(text) else FELL), f"{type(error).__name__}: {text}"
    except BaseException as error:
        return FELL, f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


ROWS = {"stores": stores, "annotations": annotations, "checkpoints": weights, "runs": run_folders}


def fuzz(count: int, seed: int, folder: Path, report=print) -> tuple[pd.DataFrame, list[str]]:
    """`count` inputs of each kind: what became of them, and those that fell."""
    signal.signal(signal.SIGALRM, hung)
    table, fallen = {}, []
    for name in ["videos", *ROWS]:
        (folder / name).mkdir()
        chance, start = random.Random(f"{seed} {name}"), time.monotonic()
        if name == "videos":
            found = videos(folder / name, count, chance)
        else:
            attack, found = ROWS[name](folder / name), Counter()
            for number in range(count):
                became, error = outcome(attack, number, random.Random(f"{seed} {name} {number}"))
                found[became] += 1
                fallen += [f"{name} {number}: {error}"] if became in (OTHER, FELL) else []
        table[name] = found
        report(f"{name}: {dict(found)} in {time.monotonic() - start:.0f} s")
    columns = [REFUSED, NOTICED, SAME, UNTOLD, OTHER, FELL]
    return pd.DataFrame(table).T.reindex(columns=columns).fillna(0).astype(int), fallen


def main() -> None:
    """The command."""
    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)
    count, seed = (int(value) for value in (sys.argv[1:] + ["1000", "0"][len(sys.argv) - 1 :]))
    warnings.simplefilter("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        table, fallen = fuzz(
            count // (1 + len(ROWS)), seed, Path(folder), partial(print, flush=True)
        )
    print(pages.as_markdown(table.assign(tried=table.sum(axis=1)).reset_index(names="row")))
    total = int(table.to_numpy().sum())
    held = total - int(table[[OTHER, FELL]].to_numpy().sum())
    print(f"{total} mutated inputs, seed {seed}: {held} held")
    print(*fallen[:40], sep="\n")
    sys.exit(bool(fallen or held < total))


if __name__ == "__main__":
    main()
