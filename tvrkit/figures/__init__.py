"""Arrays in, matplotlib `Figure` out: film strips, attention, charts, in one style.

Every function that draws takes `title=` besides; a figure is one call, and `save` writes it.
"""

# ruff: noqa: F403  a figure is called by its name alone, whichever file draws it
from tvrkit.figures.attention import *
from tvrkit.figures.charts import *
from tvrkit.figures.strips import *
from tvrkit.figures.style import *
