"""Arrays that say whether a picture is right: mined negatives, attention, and shapes' truth."""

# ruff: noqa: F403  a measure is called by its name alone, whichever file it is in
from tvrkit.inspection.attention import *
from tvrkit.inspection.diagnostics import *
from tvrkit.inspection.negatives import *
from tvrkit.inspection.truth import *
