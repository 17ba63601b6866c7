"""Losses against loops over their equations."""

import torch
from torch.nn.functional import normalize

from tvrkit.losses.contrastive import info_nce, neg_nce
from tvrkit.losses.miners import margin_negatives

BATCH, SCALE = 128, 100.0


def scores():
    random = torch.Generator().manual_seed(0)
    text, video = (normalize(torch.randn(BATCH, 512, generator=random), dim=-1) for _ in "tv")
    return text @ video.T


def bench_info_nce(against):
    similarity = scores()

    def plain():
        total = 0.0
        for matrix in (similarity, similarity.T):
            for row in range(BATCH):
                exponents = SCALE * matrix[row]
                total = total - exponents[row] + exponents.logsumexp(0)
        return total / (2 * BATCH)

    def fast():
        return info_nce(similarity, logit_scale=SCALE)

    what = f"InfoNCE, batch {BATCH}, against a loop"
    torch.testing.assert_close(*against(plain, fast, what, calls=100))


def bench_neg_nce(against):
    similarity = scores()
    own, others = similarity.diagonal(), ~torch.eye(BATCH, dtype=torch.bool)

    def plain():
        mined = [
            [bool(i != j and similarity[i, j] > min(own[i], own[j])) for j in range(BATCH)]
            for i in range(BATCH)
        ]
        return torch.tensor(mined)

    def fast():
        neg_nce(similarity, logit_scale=SCALE)
        return margin_negatives(similarity, ~others)

    what = f"NegNCE and its mining, batch {BATCH}, against a loop that mines"
    torch.testing.assert_close(*against(plain, fast, what, calls=10))
