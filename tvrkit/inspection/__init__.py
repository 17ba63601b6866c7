"""Arrays that say whether a picture is right: mined negatives, attention, and shapes' truth."""

# ruff: noqa: F401
from tvrkit.inspection.attention import (
    EncodedSplit,
    attention_lift,
    attention_on,
    by_weight,
    deletion_curves,
    deletion_gap,
    deletion_gaps,
    deletion_test,
    encode_split,
    encode_videos,
    frames_seen,
    matched_scores,
    mean_cosine,
    overlapping,
    partial_order,
    patch_attention,
    per_word,
    remaining,
    without_frames,
    word_spans,
)
from tvrkit.inspection.diagnostics import (
    Diagnostics,
    auc,
    format_interval,
    informative_share,
    mean_interval,
)
from tvrkit.inspection.negatives import (
    caption_likeness,
    embed,
    hardest_queries,
    mined_sets,
    mining_quality,
    near_duplicates,
    nearness,
    over_training,
    plane,
    push,
    push_by_kind,
    text_kinds,
)
from tvrkit.inspection.truth import (
    concept_preferences,
    contradicting_words,
    frame_quality,
    kinds_of_pairs,
    object_pixels,
    pair_kinds,
    partial_captions,
    per_factor_accuracy,
    swapped_pairs,
)
