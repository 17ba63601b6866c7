"""shapes: procedural videos with known meaning, so that the whole kit runs anywhere and is scored
on truth.

Real .mp4 files, decoded and stored like any other video. The data set is a function of preset and
seed.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from tvrkit import files
from tvrkit.data import manifest
from tvrkit.data.decoders import FrameSettings
from tvrkit.data.extract import extract
from tvrkit.settings import choose
from tvrkit.shapes import truth
from tvrkit.shapes.captions import mention, tell
from tvrkit.shapes.render import encode, render
from tvrkit.shapes.scenes import PRESETS, Preset, Video, plan

PREFIX = "shapes-"  # of a folder, before the name of its preset
CAPTION_COLUMNS = [*manifest.CAPTION_FIELDS, "tags"]
TRUTH_COLUMNS = ["caption_id", "video_id", "language", "mentioned", "spans", "partial_of"]


def prepare_shapes(
    root: Path | str, preset: str | None = None, seed: int = 0, workers: int = 2
) -> manifest.Manifest:
    """Make the data set, or what is missing of it, in `root`; a finished one is left as it is.

    Args:
        root: folder of the prepared data set; gets `videos/`, `truth/`, and what every prepared
            data set has.
        preset: a key of `PRESETS`; what the folder's name ends in ("shapes-quick") where None.
        seed: of everything. The same seed gives the same bytes of truth and captions, and the same
            frames.
        workers: processes that decode.

    Raises:
        ValueError: unknown preset, or `root` holds shapes of another preset or seed.
        RuntimeError: a video could not be decoded again.
    """
    root = Path(root)
    name = choose("preset", preset or root.name.removeprefix(PREFIX), PRESETS)
    chosen, card = PRESETS[name], root / manifest.CARD
    made_from = {"preset": name, "seed": seed, **asdict(chosen)}
    mark = root / truth.FOLDER / "made_from.json"
    there = files.read_json(mark) if mark.exists() else None
    fresh = not mark.exists() and not card.exists()
    got = f"{there}: choose another folder"
    files.expect(fresh or there == made_from, root, f"shapes of {made_from}", got)
    if not card.exists():
        files.write_json_lines(mark, [made_from])
        _make(root, chosen, plan(chosen, seed), {"made_from": made_from}, workers)
    return manifest.Manifest.open(root)


def _make(root: Path, preset: Preset, videos: list[Video], about: dict, workers: int) -> None:
    captions = pd.DataFrame([row for video in videos for row in _captions(video, preset)])
    scenes, texts = (root / truth.FOLDER / name for name in ("videos.jsonl", "captions.jsonl"))
    files.write_json_lines(scenes, map(_truth, videos))
    files.write_json_lines(texts, captions[TRUTH_COLUMNS].to_dict("records"))
    paths = {video.video_id: root / "videos" / f"{video.video_id}.mp4" for video in videos}
    (root / "videos").mkdir(exist_ok=True)
    for video in tqdm(videos, "rendering", unit="video"):  # whole files: the next call goes on
        path = paths[video.video_id]
        if not path.exists():
            encode(render(video.scene, video.distractors, [*video.seed, 1]), path, preset.fps)
    rows = extract(paths, root / manifest.STORE, FrameSettings(preset.frames), workers=workers)
    broken = rows[(rows.status != "ok") | (rows.frames != preset.frames)]
    if len(broken):
        first = dict(broken.iloc[0])
        raise RuntimeError(f"{len(broken)} of {len(rows)} videos not decoded whole: {first}")
    manifest.write(root, captions[CAPTION_COLUMNS], rows, {"protocol": "shapes", **about})


def _captions(video: Video, preset: Preset) -> list[dict]:
    """Rows of both `captions.jsonl` together.

    The first caption of each language says everything; its attribute words are the video's tags.
    """
    rng = np.random.default_rng([*video.seed, 0])
    about, rows = {"video_id": video.video_id, "split": video.split}, []
    for language, count in (("en", preset.captions_en), ("zh", preset.captions_zh)):
        full, tags = mention(video.scene, 0.0, rng), ""
        names = [f"{video.video_id}-{language}{index}" for index in range(count)]
        for name in names:
            shorter = name != names[0] and rng.random() < preset.partial
            mentioned = mention(video.scene, preset.omit if shorter else 0.0, rng)
            text, spans = tell(video.scene, mentioned, language, preset.filler, rng)
            tags = tags or " ".join(text[start:end] for start, end, _ in spans)
            said = {"caption_id": name, "caption": text, "language": language, "tags": tags}
            known = {"mentioned": list(mentioned), "spans": spans}
            whole = None if mentioned == full else names[0]
            rows.append(about | said | known | {"partial_of": whole})
    return rows


def _truth(video: Video) -> dict:
    informative = [not kind for kind in video.distractors]
    return vars(video) | {"scene": asdict(video.scene), "informative": informative}
