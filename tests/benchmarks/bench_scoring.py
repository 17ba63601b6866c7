"""How fast scoring is, as ratios within one run; results are checked against each other, times are
not asserted."""

import pytest
import torch
from torch.nn.functional import normalize

from tvrkit.models.similarity import token_interaction
from tvrkit.models.tpm import Pairs, PartialOrder, TPMSettings

SIZE, DENSE, WORDS, FRAMES, WIDTH, BATCH = 1000, 256, 32, 12, 512, 128


@pytest.fixture(scope="module")
def tokens():
    """Normalised words and frames with masks; 4 to 19 words are valid, 11.5 on average."""
    random = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(SIZE, WORDS, WIDTH, generator=random), dim=-1)
    video = normalize(torch.randn(SIZE, FRAMES, WIDTH, generator=random), dim=-1)
    mask = torch.arange(WORDS) < torch.randint(4, 20, (SIZE, 1), generator=random)
    return text, video, mask, torch.ones(SIZE, FRAMES, dtype=torch.bool)


def dense_block(text, video, text_mask, video_mask):
    """What the released code computes for one block: every word slot of every pair, padding
    included."""
    product = torch.einsum("atd,bvd->abtv", text, video)
    product = product * text_mask[:, None, :, None] * video_mask[None, :, None, :]
    best_frame, first = product.max(dim=3)
    gram = (
        torch.einsum("bvd,bwd->bvw", video, video) * video_mask[:, :, None] * video_mask[:, None, :]
    )
    gram.diagonal(dim1=1, dim2=2).zero_()
    gain, near = (table[None, :, None].expand(*first.shape, -1) for table in gram.max(dim=2))
    gain, near = (table.gather(3, first[..., None]) for table in (gain, near))
    best_frame = best_frame + 0.5 * (gain * product.gather(3, near))[..., 0]
    text_share = text_mask / text_mask.sum(1, keepdim=True)
    video_share = video_mask / video_mask.sum(1, keepdim=True)
    best_word = product.amax(dim=2)
    return ((best_frame * text_share[:, None]).sum(2) + (best_word * video_share).sum(2)) / 2


def dense(text, video, text_mask, video_mask, size):
    """All blocks of size x size pairs."""
    video_blocks = list(zip(video.split(size), video_mask.split(size), strict=True))
    return torch.cat(
        [
            torch.cat([dense_block(t, v, m, n) for v, n in video_blocks], dim=1)
            for t, m in zip(text.split(size), text_mask.split(size), strict=True)
        ]
    )


@torch.no_grad()
@pytest.mark.parametrize("second", [False, True])
def bench_token_interaction_and_bare_product(against, tokens, second):
    text, video, mask, _ = tokens
    words, frames = text[mask], video.flatten(0, 1).T

    def product():
        for block in words.split(512):
            block @ frames

    name = "token interaction and second look" if second else "token interaction"
    what = f"{name}, {SIZE:,} x {SIZE:,}, against the bare product of the valid words"
    against(product, lambda: token_interaction(*tokens, second_frame=second), what, rounds=3)


@torch.no_grad()
def bench_token_interaction(against, tokens):
    part = [side[:DENSE] for side in tokens]
    what = f"token interaction, {DENSE} x {DENSE}, against every word slot, in blocks as released"
    expected, score = against(
        lambda: dense(*part, 16), lambda: token_interaction(*part, second_frame=True), what
    )
    torch.testing.assert_close(score, expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def pairs():
    """A batch for TPM-CL, and its modules."""
    random = torch.Generator().manual_seed(0)
    shapes = ((BATCH, WIDTH), (BATCH, WORDS, WIDTH), (BATCH, FRAMES, WIDTH))
    features = [normalize(torch.randn(shape, generator=random), dim=-1) for shape in shapes]
    word_mask = torch.arange(WORDS) < torch.randint(4, 20, (BATCH, 1), generator=random)
    torch.manual_seed(0)
    order = PartialOrder(WIDTH, TPMSettings(max_words=WORDS, max_frames=FRAMES))
    return order, Pairs(*features, word_mask, torch.ones(BATCH, FRAMES, dtype=torch.bool))


@torch.no_grad()
def bench_margins(against, pairs):
    """As released every text meets every video, 8 x 8 at a time; only the diagonal enters."""
    order, (sentence, words, frames, word_mask, frame_mask) = pairs

    def margins():
        rows = []
        for texts in torch.arange(BATCH).split(8):
            row = []
            for videos in torch.arange(BATCH).split(8):
                a, b = (index.flatten() for index in torch.meshgrid(texts, videos, indexing="ij"))
                met = Pairs(sentence[a], words[a], frames[b], word_mask[a], frame_mask[b])
                scores = order.scores(met)
                row.append(torch.stack([*scores.values()]).view(-1, len(texts), len(videos)))
            rows.append(torch.cat(row, dim=2))
        full, partial, grounded, grounded_partial, words_partial = torch.cat(rows, dim=1).diagonal(
            dim1=1, dim2=2
        )
        gaps = full - partial, grounded - grounded_partial, grounded - words_partial
        return [(order.margin - gap).relu().mean() for gap in gaps]

    what = f"TPM-CL margins, batch {BATCH}, matched pairs, against all pairs as released"
    result, found = against(margins, lambda: order(pairs[1]), what, rounds=2, calls=10)
    torch.testing.assert_close(result, [*found.values()], atol=1e-5, rtol=0)
