"""GLSCL's losses: what they ignore, and where they are zero (released numbers: test_parity)."""

import pytest
import torch

from tvrkit.losses import concepts as losses


def test_consistency_as_the_paper_has_it_ignores_the_batch_size():
    text, video = torch.randn(2, 4, 8, 16).unbind()
    settings = {"target": 0.75, "weight": 0.02}
    once = losses.concept_consistency(text, video, **settings)
    tiled = losses.concept_consistency(text.repeat(5, 1, 1), video.repeat(5, 1, 1), **settings)
    torch.testing.assert_close(once, tiled)
    with pytest.raises(ValueError, match="batch_mean"):
        losses.concept_consistency(text, video, reduction="sum", **settings)


def test_diversity_is_zero_for_orthogonal_concepts_and_margin_counts():
    orthogonal = torch.eye(4)[None].expand(3, 4, 4)
    assert losses.concept_diversity(orthogonal, margin=0.9) == 0
    assert losses.concept_diversity(torch.ones(3, 4, 4), margin=0.1).item() == pytest.approx(0.2)
    assert losses.concept_diversity(orthogonal[:, :1], margin=0.1) == 0
