"""A trained method, or a bare backbone, that turns clips into rows of an index and queries into
scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tvrkit.data import loader
from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.data.decoders import FrameSettings, read_frames
from tvrkit.data.features import padded
from tvrkit.data.prepare import SHORT_SIDE
from tvrkit.data.text import Span, token_spans, tokenise
from tvrkit.models.checkpoints import digest
from tvrkit.models.method import Method
from tvrkit.models.similarity import token_interaction
from tvrkit.models.temporal import mean_frame
from tvrkit.recipes import load_recipe
from tvrkit.search.clips import read_still
from tvrkit.settings import BackboneConfig, Config, choose
from tvrkit.training import runs
from tvrkit.training.card import resolve_device

FORMAT = 2  # of an index
LONGEST = 1000  # characters of a query
BATCH = 32  # segments encoded at a time
# Names of `prompts`: the scores of a query are means over its templates.
PROMPTS = {
    "none": ("{}",),
    "video": ("{}", "a video of {}", "a clip that shows {}", "footage of {}"),
    "zh": ("{}", "一段{}的视频", "视频里{}"),
}


def load_model(
    run: str | None, backbone: str | None, pretrained: str | None
) -> tuple[Config, Method]:
    """The recipe and the method that an index is made with, see `Encoder`.

    Raises:
        ValueError: neither run nor backbone is named, or both are.
        FileNotFoundError: no such run, or no such weights.
    """
    if run is not None and backbone is None:
        done = runs.opened(run)
        return done.config, done.method()
    if run is not None or backbone is None:
        raise ValueError("expected a run (RUN/RECIPE/seedK) or a backbone, and not both")
    config = load_recipe("clip4clip_msrvtt", ["method.head=meanP"])
    config = replace(config, backbone=BackboneConfig(backbone, pretrained))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return config, runs.build_method(config).eval()


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes:
        label: the text, or the name of the file.
        vector: (D,) float, unit length: what the first stage compares with `global_vector`.
        score: (N,) exact scores of N videos.
        text: of a query in words its features, else None.
        tokens: of a query in words where they stand in it, see `tvrkit.data.text.token_spans`.
        language: "en" or "zh" of a query in words, else "".
        notes: what the searcher should know, such as that the text was cut.
    """

    label: str
    vector: Tensor
    score: Callable[[VideoFeatures], Tensor]
    text: TextFeatures | None = None
    tokens: list[tuple[int, Span]] = field(default_factory=list)
    language: str = ""
    notes: list[str] = field(default_factory=list)


def global_vector(video: VideoFeatures) -> Tensor:
    """(N, D) unit vectors: the method's own vector of a video, else the mean of its unit frames."""
    whole = video.video if video.video is not None else mean_frame(video.frames, video.mask)
    return normalize(whole, dim=-1)


class Encoder:
    """A method with its preprocessing.

    Args:
        run: "RUN/RECIPE/seedK" of a finished run; None: the mean of the backbone's frames
            (CLIP4Clip's meanP, which has no weights of its own).
        backbone: open_clip name, where there is no run.
        pretrained: its weights, see `BackboneConfig`; None = random ones, always the same.
        device: "cpu", "cuda" or "cuda:k".
    """

    def __init__(
        self,
        run: str | None = None,
        backbone: str | None = None,
        pretrained: str | None = None,
        device: str = "cpu",
    ):
        self.model, self.device = (run, backbone, pretrained), resolve_device(device)
        self.config, method = load_model(*self.model)
        self.method = method.to(self.device)
        self.frames = self.config.data.max_frames
        self.max_words = self.config.data.max_words if run else method.backbone.context_length

    @cached_property
    def card(self) -> dict[str, str]:
        """What an index must agree on with whoever adds to it or searches it."""
        backbone, weights = self.method.backbone, digest(self.method.state_dict())
        made = {"format": FORMAT, "method": self.config.method_name, "backbone": backbone.name}
        made |= {"weights": weights, "tokenizer": backbone.tokenizer_id}
        made |= {"frames": self.frames, "preprocessing": backbone.preprocessing}
        return {key: str(value) for key, value in made.items()}

    def videos(self, segments: Sequence[Sequence[bytes]]) -> VideoFeatures:
        """Features, on the CPU, of segments that are given as JPEG files of their frames."""
        decode = simplejpeg.decode_jpeg
        batches = (segments[i : i + BATCH] for i in range(0, len(segments), BATCH))
        return VideoFeatures.cat(
            [self._encode([[*map(decode, files)] for files in batch]) for batch in batches]
        )

    @torch.inference_mode()
    def _encode(self, segments: Sequence[Sequence[np.ndarray]]) -> VideoFeatures:
        """Features, on the CPU, of frames (H, W, 3) uint8."""
        fit = self.method.backbone.preprocessing.fit
        fitted = [fit(torch.from_numpy(np.stack(each)).permute(0, 3, 1, 2)) for each in segments]
        frames, mask = padded(fitted, self.frames)
        batch = TextVideoBatch(frames=frames, frame_mask=mask).to(self.device)
        return self.method.encode_video(batch).to("cpu")

    @torch.inference_mode()
    def text_query(self, text: str, prompts: str = "none") -> Query:
        """A query in words.

        Args:
            prompts: a key of `PROMPTS`.

        Raises:
            ValueError: an empty or overlong text, or unknown prompts.
        """
        templates = PROMPTS[choose("prompts", prompts, PROMPTS)]
        tokenizer, notes = self.method.backbone.tokenizer, []
        if not 0 < (length := len(text.strip())) <= LONGEST:
            expected = f"expected words of 1 to {LONGEST:,} characters"
            raise ValueError(f"query: {expected}, got {length:,}")
        spans = token_spans([text], tokenizer, LONGEST)[0]
        if len(spans) > len({place for _, span in spans for place in range(*span)}):
            notes.append("the model does not know this script: it spells the query in bytes")
        if len(spans) > self.max_words - 2:
            notes.append(f"the model reads {self.max_words - 2} tokens of the query's {len(spans)}")
        texts = [template.format(text) for template in templates]
        language = "zh" if _is_chinese(text) else "en"
        tagger = loader.tagger(language)
        tokens, mask, weight = tokenise(texts, tokenizer, self.max_words, tagger)
        batch = TextVideoBatch(tokens, mask, weight).to(self.device)
        features = self.method.encode_text(batch)
        vector = normalize(normalize(features.sentence, dim=-1).mean(dim=0), dim=-1).cpu()

        @torch.inference_mode()
        def score(videos: VideoFeatures) -> Tensor:
            similarity = self.method.similarity(features, videos.to(self.device))
            return similarity.float().mean(dim=0).cpu()

        return Query(text, vector, score, features[:1], spans, language, notes)

    def video_query(self, path: Path) -> Query:
        """A video as the query, all of it: the nearest frames of both sides decide (DMAE's
        token-wise interaction between the two sets of frames)."""
        frames = read_frames(path, FrameSettings(self.frames, SHORT_SIDE))
        return self._frames_query(path, list(frames))

    def image_query(self, path: Path) -> Query:
        """A picture as the query: a video of one frame."""
        return self._frames_query(path, [read_still(path)])

    def _frames_query(self, path: Path, frames: Sequence[np.ndarray]) -> Query:
        own = self._encode([frames])
        look, whole = normalize(own.frames, dim=-1), own.mask

        def score(videos: VideoFeatures) -> Tensor:
            theirs = normalize(videos.frames, dim=-1)
            return token_interaction(look, theirs, whole, videos.mask, mask_fill="exclude")[0]

        return Query(path.name, global_vector(own)[0], score)


def _is_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)
