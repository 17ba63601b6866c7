"""One question of one's own: texts against video files, with the scores and attention of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures, pieces
from tvrkit.data.decoders import FrameSettings, read_frames
from tvrkit.data.features import padded
from tvrkit.data.loader import tagger
from tvrkit.data.prepare import SHORT_SIDE
from tvrkit.data.sampling import sample
from tvrkit.data.text import token_spans, tokenise
from tvrkit.models.method import Method
from tvrkit.training.runs import Run, opened

BATCH = 128  # texts encoded at a time


@dataclass(frozen=True, eq=False)
class Scores:
    """T texts against V videos.

    Attributes:
        texts: T, as they were asked.
        videos: V, the files.
        similarity: (T, V) float32, on the cosine scale.
        maps: the method's `explain`, (T, V, ...) by name.
        words: of each text what its tokens stand for, as the maps' word axis has them; "" for SOT,
            EOT and padding.
        frames: V, (F, S, S, 3) uint8, the frames that were looked at.
    """

    texts: list[str]
    videos: list[Path]
    similarity: np.ndarray
    maps: dict[str, np.ndarray]
    words: list[list[str]]
    frames: list[np.ndarray]


@torch.inference_mode()
def score(
    texts: str | Sequence[str],
    videos: Path | str | Sequence[Path | str],
    run: Run | Path | str,
    *,
    device: str = "cpu",
) -> Scores:
    """Score texts against video files with the method of a finished run.

    Files are decoded, and frames chosen, as those of the run's data set were.

    Args:
        texts: one or several.
        videos: one file or several.
        run: a `Run`, or its name, see `runs.opened`.
        device: "cpu", "cuda" or "cuda:k".

    Raises:
        FileNotFoundError: no such run or file.
        ValueError: a text without words.
        DecodeError: a file that gives no frame.
    """
    asked = [texts] if isinstance(texts, str) else list(texts)
    paths = [Path(each) for each in ([videos] if isinstance(videos, Path | str) else videos)]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such video file")
    if empty := [text for text in asked if not text.strip()]:
        raise ValueError(f"texts: expected words, got {empty[0]!r}")
    made = run if isinstance(run, Run) else opened(run)
    method, data = made.method(device), made.config.data
    text = encode_texts(method, asked, data.max_words, data.language)
    frames = [_frames(method, path, made) for path in paths]
    whole, mask = padded(frames, max(len(each) for each in frames))
    video = method.encode_video(TextVideoBatch(frames=whole, frame_mask=mask).to(device))
    similarity = method.similarity(text, video).float().cpu().numpy()
    shown = [each.permute(0, 2, 3, 1).numpy() for each in frames]
    words = _words(asked, method.backbone.tokenizer, data.max_words)
    return Scores(asked, paths, similarity, _maps(method, text, video), words, shown)


@torch.inference_mode()
def encode_texts(
    method: Method, texts: Sequence[str], max_words: int, language: str
) -> TextFeatures:
    """Texts as a method reads them, on its device; tagged where it weighs words.

    Raises:
        ValueError: it does, and the tagger of the language is not installed.
    """
    words = tagger(language) if method.weighs_words else None
    batch = TextVideoBatch(*tokenise(texts, method.backbone.tokenizer, max_words, words))
    batch = batch.to(method.backbone.logit_scale.device)
    return TextFeatures.cat([method.encode_text(some) for some in pieces(batch, BATCH)])


def _words(texts: list[str], tokenizer, length: int) -> list[list[str]]:
    named = [[""] * length for _ in texts]
    for row, spans in enumerate(token_spans(texts, tokenizer, length)):
        for column, (start, end) in spans:
            named[row][column] = tokenizer.clean_fn(texts[row])[start:end]
    return named


def _frames(method: Method, path: Path, run: Run) -> Tensor:
    """(F, 3, S, S) uint8: decoded as the run's frame store was, then chosen as in evaluation."""
    data, store = run.config.data, run.card["data"].get("store") or {}
    settings: dict[str, Any] = {"frames": data.max_frames, "short_side": SHORT_SIDE}
    known = ("frames", "short_side", "sampling", "window")
    settings |= {key: store[key] for key in known if key in store}
    pictures = read_frames(path, FrameSettings(**settings))
    chosen = pictures[sample(data.eval_sampling, len(pictures), data.max_frames)]
    return method.backbone.preprocessing.fit(torch.from_numpy(chosen).permute(0, 3, 1, 2))


def _maps(method: Method, text: TextFeatures, video: VideoFeatures) -> dict[str, np.ndarray]:
    """`explain` of every pair: each video beside all texts in turn."""
    every = torch.arange(len(text))
    parts = [method.explain(text, video[torch.full_like(every, row)]) for row in range(len(video))]
    return {key: np.stack([part[key].cpu().numpy() for part in parts], axis=1) for key in parts[0]}
