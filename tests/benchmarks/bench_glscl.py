"""GLSCL's scoring, concepts included, against decoding every 16 x 16 block anew as the released
evaluation does.

The blocks of all 1,000 texts would take minutes: one strip of 16 texts against all videos is timed,
and the ratio printed is to 1,000 / 16 such strips.
"""

import pytest
import torch
from torch import nn

from tests.parity import Features
from tvrkit.data.batch import TextFeatures, VideoFeatures
from tvrkit.models.glscl import GLSCL, GLSCLSettings

SIZE, WORDS, FRAMES, WIDTH, BLOCK, BATCH = 1000, 32, 12, 512, 16, 128
ROUNDS = {"rounds": 3}


@pytest.fixture(scope="module")
def features():
    """Sentences, words, frames and their masks; 4 to 19 words are valid, 11.5 on average."""
    random = torch.Generator().manual_seed(0)
    shapes = ((SIZE, WIDTH), (SIZE, WORDS, WIDTH), (SIZE, FRAMES, WIDTH))
    sentence, words, frames = (torch.randn(shape, generator=random) / 4 for shape in shapes)
    word_mask = torch.arange(WORDS) < torch.randint(4, 20, (SIZE, 1), generator=random)
    return sentence, words, frames, word_mask, torch.ones(SIZE, FRAMES, dtype=torch.bool)


def make(fidelity):
    torch.manual_seed(0)
    return GLSCL(Features(WIDTH), GLSCLSettings(fidelity=fidelity, temporal_layers=0)).eval()


def score(method, sentence, words, frames, word_mask, frame_mask):
    """What the kit does after the encoders: concepts once per text and per video, then the
    scores."""

    def concepts(side, tokens, mask):
        parts = zip(tokens.split(BATCH), mask.split(BATCH), strict=True)
        return {"concepts": torch.cat([method.concepts(side, *part) for part in parts])}

    text = TextFeatures(sentence, words, word_mask, word_mask, concepts("text", words, word_mask))
    video = VideoFeatures(None, frames, frame_mask, concepts("video", frames, frame_mask))
    return method.similarity(text, video)


def released_decoder(method):
    """torch's decoder with the method's weights."""
    layers = method.decoder["both"].layers
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(WIDTH, 8, 2048, batch_first=True), len(layers)
    )
    decoder.load_state_dict(method.decoder["both"].state_dict())
    return decoder.eval()


def dense_block(decoder, queries, temperature, sentence, words, frames, mask):
    """What the released code computes for one block: both decoders, and a pooled video for every
    pair."""
    text, video = (
        nn.functional.normalize(decoder(queries.expand(len(side), -1, -1), side), dim=-1)
        for side in (words, frames)
    )
    weight = torch.einsum("ad,bfd->abf", sentence, frames).div(temperature).softmax(dim=2) * mask
    pooled = torch.einsum("abf,bfd->abd", weight, frames)
    glob = torch.cosine_similarity(sentence[:, None], pooled, dim=-1)
    return glob + 0.5 * torch.einsum("aqd,bqd->ab", text, video) / len(queries)


def strip(method, sentence, words, frames, frame_mask):
    """The blocks of one strip of texts."""
    decoder, queries = released_decoder(method), method.queries["both"].weight
    blocks = zip(frames.split(BLOCK), frame_mask.split(BLOCK), strict=True)
    temperature = method.settings.temperature
    return torch.cat(
        [dense_block(decoder, queries, temperature, sentence, words, *block) for block in blocks],
        dim=1,
    )


@pytest.mark.parametrize("fidelity", ["released", "corrected"])
@torch.no_grad()
def bench_glscl(against, features, fidelity):
    method = make(fidelity)
    sentence, words, frames, _, frame_mask = features
    rows = slice(0, BLOCK)
    what = f"GLSCL {fidelity}, concepts included, {SIZE:,} x {SIZE:,}, against decoding each block"
    expected, scores = against(
        lambda: strip(method, sentence[rows], words[rows], frames, frame_mask),
        lambda: score(method, *features),
        what,
        rounds=2,
        part=SIZE / BLOCK,
    )
    if fidelity == "released":
        torch.testing.assert_close(scores[rows], expected, atol=1e-5, rtol=0)
