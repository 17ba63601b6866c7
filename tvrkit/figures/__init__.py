"""Arrays in, matplotlib `Figure` out: film strips, attention, charts, in one style.

Every function that draws takes `title=` besides; a figure is one call, and `save` writes it.
"""

# ruff: noqa: F401
from tvrkit.figures.attention import (
    caption_weights,
    heat_map,
    patch_attention_overlay,
    word_frame_map,
)
from tvrkit.figures.charts import (
    ablation,
    bars,
    curves,
    deletion_plot,
    differences,
    embedding,
    factor_bars,
    forest_plot,
    histogram,
    interval_bars,
    interval_curves,
    loss_curve,
    panels,
    rank_histogram,
    recall_curve,
)
from tvrkit.figures.strips import (
    Strip,
    differing_words,
    film_strip,
    film_strips,
    split_words,
    top_videos,
)
from tvrkit.figures.style import INK, METHOD_COLOURS, NEUTRAL, RIGHT, WRONG, colours, save
