"""Arrays that say whether a picture is right: mined negatives, attention, and shapes' truth."""

# ruff: noqa: F401
from tvrkit.inspection.attention import (
    attention_lift,
    attention_on,
    auc,
    deletion_curves,
    deletion_gap,
    deletion_test,
    encode_videos,
    frames_seen,
    indices_seen,
    informative_share,
    kept,
    matched_scores,
    mean_cosine,
    mean_interval,
    overlapping,
    per_word,
    without_frames,
    word_spans,
)
from tvrkit.inspection.negatives import (
    caption_likeness,
    embed,
    mining_quality,
    over_training,
    plane,
    push,
    text_kinds,
)
from tvrkit.inspection.truth import (
    contradicting_words,
    object_pixels,
    pair_kinds,
    per_factor_accuracy,
    swapped_pairs,
)
