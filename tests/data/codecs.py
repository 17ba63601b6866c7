"""A matrix of made files, one of each kind that decoders trip over, and the table of what they do:

    python -m tests.data.codecs --out tvrkit/assets/decoders.csv --page docs/decoders.md

The truth is an independent full sequential decode. `right` are frames that equal it, of those that
were sampled; `wrong` differ; `refused` were not given, for a reason.
"""

import argparse
import dataclasses
import io
import struct
import tempfile
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pandas as pd

from tvrkit.data.decoders import DecodePool, FrameSettings
from tvrkit.data.sampling import sample
from tvrkit.evaluation.evaluate import evaluate
from tvrkit.models.backbone import create_backbone
from tvrkit.models.clip4clip import CLIP4Clip
from tvrkit.recipes import load_recipe
from tvrkit.reporting import pages
from tvrkit.shapes.dataset import prepare_shapes

COUNT, SAMPLED = 100, 25
KEYS = "keyint=12:min-keyint=12:scenecut=0"
B_FRAMES = {"options": {"g": "12", "bf": "2"}}
HIDDEN = {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16"}  # frames that are never shown
VARIABLE = [33 * i for i in range(COUNT // 2)]
VARIABLE += [33 * COUNT // 2 + 200 * i for i in range(COUNT // 2)]


def _x264(parameters, **more):
    options = {"preset": "fast", "crf": "12", "x264-params": f"{KEYS}:{parameters}"}
    return {"options": options, **more}


def _x265(parameters, **more):
    options = {"x265-params": f"{KEYS}:log-level=-1:pools=1:frame-threads=1:{parameters}"}
    return {"codec": "libx265", "options": options, **more}


def pictures(count, height, width):
    """A texture that moves to the left, under a square whose grey tells the frame."""
    blocks = np.random.default_rng(0).integers(60, 200, (height // 8 + 2, width // 2 + count, 3))
    texture = blocks.astype(np.uint8).repeat(8, 0).repeat(8, 1)
    images = np.stack([texture[:height, 4 * i : 4 * i + width] for i in range(count)])
    images[:, : height // 2, : width // 2] = (5 * np.arange(count) % 256)[:, None, None, None]
    return images


def write(path, images=None, codec="libx264", pixels="yuv420p", height=64, width=96, **coding):
    """One video file, of `pictures` where no images are given. `coding`: options of the codec,
    flags of the container, times of the frames in milliseconds, tag, flashes."""
    images = pictures(COUNT, height, width) if images is None else images
    if coding.get("flashes"):  # as cuts do, they make pictures that are intra and no key frames
        images[::7] = 255 - images[::7]
    flags = {"fflags": "+bitexact", **coding.get("flags", {})}
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream(codec, rate=30, options=coding.get("options", {}))
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.bit_rate, stream.codec_context.thread_count = (
            4_000_000,
            1,
        )  # the same bytes each time
        stream.codec_context.codec_tag = coding.get("tag", stream.codec_context.codec_tag)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image)
            if times := coding.get("times"):
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


def set_matrix(path, a, b, c, d):
    """The display matrix of an .mp4 file: x' = a x + c y, y' = b x + d y."""
    data = bytearray(path.read_bytes())
    # version and flags; times, id, duration; reserved; layer to volume
    start = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    for place, value in zip((0, 1, 3, 4), (a, b, c, d), strict=True):
        struct.pack_into(">i", data, start + 4 * place, round(value * (1 << 16)))
    path.write_bytes(data)


def set_edits(path, *edits):
    """The edit list of an .mp4 file with its index at the end: (milliseconds, first unit of the
    track's time, or -1 for nothing to show) of each edit."""
    data = bytearray(path.read_bytes())
    start = data.index(b"elst") - 4
    old = struct.unpack_from(">I", data, start)[0]
    entries = b"".join(struct.pack(">IiHH", length, at, 1, 0) for length, at in edits)
    box = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    data[start : start + old] = box
    for name in (b"edts", b"trak", b"moov"):
        place = data.rindex(name, 0, start) - 4
        size = struct.unpack_from(">I", data, place)[0]
        struct.pack_into(">I", data, place, size + len(box) - old)
    path.write_bytes(data)


def cut_start(path, packets):
    """Leave the beginning of an MPEG-TS file out, as a recording of a broadcast does."""
    kept = path.read_bytes()[188 * packets :]
    path.write_bytes(kept)


def cut_end(path, share=0.6):
    """Leave the end of a file out."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def zero(path, share=0.5, size=400):
    """Zeros in the middle of a file."""
    data = bytearray(path.read_bytes())
    start = int(share * len(data))
    data[start : start + size] = bytes(size)
    path.write_bytes(data)


CLOSED, OPEN = "bframes=3:b-pyramid=normal", "bframes=3:open-gop=1"
S = 0.5**0.5
# name -> how it is coded, and what is done to the file then
MATRIX = {
    "h264_closed.mp4": (_x264(CLOSED), None),
    "h264_closed.mkv": (_x264(CLOSED), None),
    "h264_default.mp4": ({}, None),
    "h264_flashes.mp4": ({"flashes": True}, None),
    "h264_flashes.mkv": ({"flashes": True}, None),
    "h264_no_b_frames.mov": (_x264("bframes=0"), None),
    "h264_fragments.mp4": (_x264(CLOSED, flags={"movflags": "frag_keyframe+empty_moov"}), None),
    "h264_variable_rate.mp4": (_x264(CLOSED, times=VARIABLE), None),
    "h264_variable_rate.mkv": (_x264(CLOSED, times=VARIABLE), None),
    "h264.avi": (_x264(CLOSED), None),
    "h264.ts": (_x264(CLOSED), None),
    "h264_open.mp4": (_x264(OPEN), None),
    "h264_open.mkv": (_x264(OPEN), None),
    "h264_intra_refresh.mp4": (_x264("bframes=0:intra-refresh=1"), None),
    "h264_intra_refresh.mkv": (_x264("bframes=0:intra-refresh=1"), None),
    "h264_interlaced.mp4": (_x264("tff=1:bframes=2"), None),
    "h264_10_bit.mp4": (_x264(CLOSED, pixels="yuv420p10le"), None),
    "h264_full_range.mp4": (_x264(CLOSED, pixels="yuvj420p"), None),
    "h264_bt709.mp4": (_x264(f"{CLOSED}:colormatrix=bt709"), None),
    "h264_odd.mkv": (_x264(CLOSED, pixels="yuv444p", height=65, width=97), None),
    "h264_cut_start.ts": (_x264(OPEN), lambda path: cut_start(path, 40)),
    "h264_cut_end.ts": (_x264(CLOSED), cut_end),
    "h264_cut_end.mkv": (_x264(CLOSED), cut_end),
    "h264_zeros.mp4": (_x264(CLOSED), zero),
    "h264_trimmed.mp4": (_x264(CLOSED), lambda path: set_edits(path, (2000, 1024 + 17 * 512))),
    "h264_late.mp4": (_x264(CLOSED), lambda path: set_edits(path, (500, -1), (3300, 1024))),
    "h264_edited.mp4": (
        _x264(CLOSED),
        lambda path: set_edits(path, (1000, 1024 + 40 * 512), (1000, 1024 + 5 * 512)),
    ),
    "turned_90.mp4": (_x264(CLOSED), lambda path: set_matrix(path, 0, 1, -1, 0)),
    "turned_180.mp4": (_x264(CLOSED), lambda path: set_matrix(path, -1, 0, 0, -1)),
    "mirrored.mp4": (_x264(CLOSED), lambda path: set_matrix(path, -1, 0, 0, 1)),
    "mirrored_90.mp4": (_x264(CLOSED), lambda path: set_matrix(path, 0, 1, 1, 0)),
    "turned_45.mp4": (_x264(CLOSED), lambda path: set_matrix(path, S, S, -S, S)),
    "hevc_open.mp4": (_x265("open-gop=1"), None),
    "hevc_open.mkv": (_x265("open-gop=1"), None),
    "hevc_closed.mp4": (_x265("open-gop=0"), None),
    "hevc_10_bit.mp4": (_x265("open-gop=1", pixels="yuv420p10le"), None),
    "hevc_cut_start.ts": (_x265("open-gop=1"), lambda path: cut_start(path, 40)),
    "av1.mp4": ({"codec": "libsvtav1", "options": {"preset": "8", "g": "12"}}, None),
    "av1_open.mkv": (
        {
            "codec": "libsvtav1",
            "options": {"preset": "8", "g": "12", "svtav1-params": "irefresh-type=1"},
        },
        None,
    ),
    "vp8.webm": ({"codec": "libvpx", "options": HIDDEN}, None),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": HIDDEN}, None),
    "vp9_odd.webm": (
        {"codec": "libvpx-vp9", "height": 65, "width": 97, "options": {"g": "12"}},
        None,
    ),
    "mpeg1.mpg": ({"codec": "mpeg1video", **B_FRAMES}, None),
    "mpeg2.mp4": ({"codec": "mpeg2video", **B_FRAMES}, None),
    "mpeg2.mkv": ({"codec": "mpeg2video", **B_FRAMES}, None),
    "mpeg2.mpg": ({"codec": "mpeg2video", **B_FRAMES}, None),
    "mpeg2_cut_start.ts": ({"codec": "mpeg2video", **B_FRAMES}, lambda path: cut_start(path, 40)),
    "mpeg4.avi": ({"codec": "mpeg4", "options": {"g": "12"}}, None),
    "mpeg4_b_frames.avi": ({"codec": "mpeg4", **B_FRAMES}, None),
    "mpeg4_b_frames.mp4": ({"codec": "mpeg4", **B_FRAMES}, None),
    "mpeg4_b_frames.mkv": ({"codec": "mpeg4", **B_FRAMES}, None),
    "mpeg4_odd.mp4": ({"codec": "mpeg4", "height": 65, "width": 97, **B_FRAMES}, None),
    "xvid.avi": ({"codec": "mpeg4", "tag": "XVID", **B_FRAMES}, None),
    "xvid.mkv": ({"codec": "mpeg4", "tag": "XVID", **B_FRAMES}, None),
    "prores.mov": ({"codec": "prores_ks", "pixels": "yuv422p10le"}, None),
    "mjpeg.mov": ({"codec": "mjpeg", "pixels": "yuvj420p"}, None),
    "gif.gif": ({"codec": "gif", "pixels": "gray"}, None),
    "wmv.wmv": ({"codec": "wmv2", "options": {"g": "12"}}, None),
    "flash.flv": ({"codec": "flv", "options": {"g": "12"}}, None),
}


def make(name, folder):
    """The file of the matrix."""
    coding, then = MATRIX[name]
    path = write(folder / name, **coding)
    if then:
        then(path)
    return path


def decode_all(path):
    """The truth: (N, H, W, 3) uint8 RGB of each frame that comes out, from the first on; their
    stamps."""
    frames, stamps = [], []
    with av.open(str(path)) as container:
        # several threads conceal damage in other ways
        container.streams.video[0].codec_context.thread_count = 1
        for packet in container.demux(video=0):
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                continue
            for frame in decoded:
                frames.append(frame.to_ndarray(format="rgb24", interpolation="BICUBIC"))
                stamps.append(frame.pts)
    return np.stack(frames), stamps


def told(path):
    """How many frames PyAV calls broken, and the levels of what FFmpeg says while it decodes them
    all."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as said, av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            broken = sum(frame.is_corrupt for frame in container.decode(video=0))
    except av.error.FFmpegError:
        broken = -1
    finally:
        av.logging.set_level(level)
    return broken, [level for level, name, _ in said if name != "swscaler"]


def expected(stamps, count):
    """Which of them are sampled: the middles of equal spans of time, as far as it is known."""
    chosen, rising = sample("uniform", len(stamps), count), stamps == sorted(set(stamps) - {None})
    if not rising or len(chosen) == len(stamps):
        return chosen
    times = np.array(stamps)
    step = (times[-1] - times[0]) / (len(times) - 1)
    return np.array([np.flatnonzero(times <= times[0] + (i + 0.5) * step)[-1] for i in chosen])


def differing(frames, truth, tolerance=2):
    """How many of the frames differ from the truth: (F, H, W, 3) each."""
    if len(frames) and frames.shape[1:] != truth.shape[1:]:
        return len(frames)
    return int((np.abs(frames.astype(int) - truth).max((1, 2, 3)) > tolerance).sum())


def by_decord(path, indices):
    """What decord gives for the indices, in the order of time, as a program would ask; none where
    it gives up."""
    import decord

    try:
        return decord.VideoReader(str(path), num_threads=1).get_batch(list(indices)).asnumpy()
    except (decord.DECORDError, RuntimeError):
        return np.empty(0)


def by_kit(paths, settings):
    """(info, frames) of each file, as the kit reads it."""
    with DecodePool(2) as pool:
        for info, files in pool.run(paths, dataclasses.replace(settings, quality=None)):
            yield info, np.array([np.load(io.BytesIO(file)) for file in files])


def compare(folder, sampled=SAMPLED):
    """A row per file of the matrix: who reads it and why, and what is right of the sampled frames,
    by the kit and by decord alone. Turns are undone."""
    rows, paths = [], [make(name, folder) for name in MATRIX]
    for path, (info, frames) in zip(paths, by_kit(paths, FrameSettings(sampled)), strict=True):
        truth, stamps = decode_all(path)
        indices = expected(stamps, sampled)
        theirs = by_decord(path, indices)
        row = {"file": path.name, "frames": len(truth), "read by": info.decoder, "why": info.why}
        for who, got in (("kit", frames), ("decord", theirs)):
            got = upright(got, path.stem) if len(got) else got
            wrong = differing(got, truth[indices]) if len(got) == len(indices) else len(got)
            row |= {f"{who} right": len(got) - wrong, f"{who} wrong": wrong}
            row |= {f"{who} refused": len(indices) - len(got)}
        rows.append(row | {"reason": info.reason})
    return pd.DataFrame(rows)


def upright(frames, name):
    """The frames of a turned file as they are stored."""
    undo = {
        "turned_90": lambda images: np.rot90(images, 1, (1, 2)),
        "turned_180": lambda images: images[:, ::-1, ::-1],
        "mirrored": lambda images: images[:, :, ::-1],
        "mirrored_90": lambda images: images.swapaxes(1, 2),
    }
    return undo[name](frames) if name in undo else frames


class Scorer:
    """What wrong frames do to a score: R@1 of the backbone alone on the 40 test videos of shapes'
    smoke preset, each of its 16 frames held for six, coded as a kind of the matrix."""

    HOLD = 6

    def __init__(self, folder):
        config = load_recipe("clip4clip_shapes", [], "smoke")
        self.folder, self.config = folder, config
        self.split = prepare_shapes(folder / "shapes-smoke").split("test")
        self.method = CLIP4Clip(create_backbone(config.backbone), CLIP4Clip.Settings())
        self.count = self.HOLD * self.split.frame_counts[0]

    def __call__(self, name):
        """(R@1 with the right frames, R@1 with decord's), in percent."""
        truth, theirs = {}, {}
        indices = sample("uniform", self.count, self.config.data.max_frames)
        for video in self.split.video_ids:
            frames = self.split.frames.read(video, range(self.count // self.HOLD))
            path = self.folder / f"{video}.{name.rpartition('.')[2]}"
            size = {"height": frames.shape[1], "width": frames.shape[2]}
            write(path, frames.repeat(self.HOLD, 0), **MATRIX[name][0] | size)
            truth[video], theirs[video] = decode_all(path)[0][indices], by_decord(path, indices)
        return self.recall(truth), self.recall(theirs)

    def recall(self, frames):
        store = SimpleNamespace(read=lambda video, wanted: frames[video])
        scored = evaluate(self.method, dataclasses.replace(self.split, frames=store), self.config)
        return round(scored.metrics["t2v R@1"], 1)


PAGE = """# Which frames each kind of video gives, before and after

Made by `python -m tests.data.codecs --out tvrkit/assets/decoders.csv --page docs/decoders.md`:
a file of each of {kinds} kinds is made, {sampled} frames of each are read and compared with an
independent full sequential decode, frame by frame.

- *before*: plain decord, asked for these frames of every file, as the released codes ask it.
- *after*: the decoder that the kit chooses for the file, and why.
- Frames that equal the truth / that differ from it, without a word / that were not given.
- note: the reason in the video's row.
- R@1: of the backbone alone on the 40 test videos of shapes' smoke preset, coded in this way, with
  the right frames → with decord's. Two runs of the command differed by up to 1.9 points in it, and
  in nothing else.

Before: {before}. After: {after}.

{table}
"""


def page(table):
    """docs/decoders.md of the table of `compare`, all of its values as text."""
    counts = ("right", "wrong", "refused")
    shown, totals = pd.DataFrame({"file": table["file"]}), {}
    for title, who in (("before", "decord"), ("after", "kit")):
        numbers = table[[f"{who} {count}" for count in counts]].astype(int)
        shown[title] = numbers.astype(str).agg(" / ".join, axis=1)
        totals[title] = ", ".join(f"{n} {c}" for n, c in zip(numbers.sum(), counts, strict=True))
        wrong = int((numbers[f"{who} wrong"] > 0).sum())
        totals[title] += f" of {numbers.to_numpy().sum()} frames, wrong in {wrong} kinds"
    shown[["read by", "why", "note"]] = table[["read by", "why", "reason"]]
    scores = table["R@1"] + " → " + table["R@1 by decord"]
    shown["R@1"] = scores.where(table["R@1"] != "", "")
    return PAGE.format(kinds=len(table), sampled=SAMPLED, table=pages.as_markdown(shown), **totals)


def read(path):
    """The table that was written, all of its values as text."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="CSV file, with what it does to a score")
    parser.add_argument("--page", type=Path, help="the same, to be read")
    arguments = parser.parse_args()
    out = arguments.out
    with tempfile.TemporaryDirectory() as made:
        table = compare(Path(made))
        if out:
            scorer = Scorer(Path(made))
            # of a file that is only coded, in pictures of shapes' size
            coded = {
                name for name, (_, then) in MATRIX.items() if then is None and "odd" not in name
            }
            for row in table[table["decord wrong"] > 0].itertuples():
                if row.file in coded:
                    table.loc[row.Index, ["R@1", "R@1 by decord"]] = scorer(row.file)
            table.to_csv(out, index=False)
            if arguments.page:
                arguments.page.write_text(page(read(out)), encoding="utf-8")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
