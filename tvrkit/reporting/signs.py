"""Is each part of a method alive? What `Method.signs` recorded after every epoch, judged."""

from typing import NamedTuple

import pandas as pd

from tvrkit.training.runs import Run


class Range(NamedTuple):
    """Where a sign says that a part lives, and what is said outside of it."""

    low: float
    high: float
    dead: str


ALIVE = {
    "change by reversed frames": Range(0.05, 1e9, "the order of frames hardly matters"),
    "negatives mined (%)": Range(0.1, 50, "NegNCE mines next to nothing, or everything"),
    "words that count twice (%)": Range(5, 95, "textual attention tells no words apart"),
    "gain of the second look": Range(0.05, 1.5, "the second look counts nothing"),
    "words masked (%)": Range(5, 95, "TPM-CL masks (next to) no word, or all"),
    "captions with a masked word (%)": Range(50, 101, "in most captions TPM-CL masks no word"),
    "frames masked (%)": Range(5, 95, "TPM-CL masks (next to) no frame, or all"),
    "word predictor's weight on start and end (%)": Range(
        0, 50, "TPM-CL's weight sits on the start and end tokens"
    ),
    "sentence_video: full above masked (%)": Range(60, 101, "masked frames cost no score"),
    "grounded_video: full above masked (%)": Range(60, 101, "masked frames cost no grounded score"),
    "grounded_text: full above masked (%)": Range(60, 101, "masked words cost no score"),
    "cosine between text concepts": Range(-1, 0.9, "the concepts of a text are all the same"),
    "cosine between video concepts": Range(-1, 0.9, "the concepts of a video are all the same"),
    "spread of frame scores": Range(0.005, 2, "all frames score the same: no best ones"),
    "masked words guessed (%)": Range(15, 101, "MLM guesses (next to) no masked word"),
    "momentum encoders behind (%)": Range(0.01, 50, "the momentum encoders do not follow"),
}
"""sign: from where on, and up to where, the part lives."""


def table(run: Run) -> pd.DataFrame:
    """A row per sign that was recorded: a column per epoch, `alive` (from, to), and `verdict`."""
    curve = run.curve.set_index("epoch")
    found = curve[[name for name in ALIVE if name in curve]].T
    last = found.iloc[:, -1] if len(found) else pd.Series(dtype=float)
    limits = {name: f"{ALIVE[name].low:g} to {ALIVE[name].high:g}" for name in found.index}
    words = {
        name: "alive" if ALIVE[name].low <= value <= ALIVE[name].high else ALIVE[name].dead
        for name, value in last.items()
    }
    return found.rename_axis("sign").assign(alive=pd.Series(limits), verdict=pd.Series(words))


def sentence(run: Run) -> str:
    """Which parts are dead after the last epoch, in words with numbers."""
    found = table(run)
    if found.empty:
        return "Whether each part is alive was not recorded."
    dead = found[found["verdict"] != "alive"]
    last = dead.columns[-3] if len(dead.columns) > 2 else None
    told = [f"{row['verdict']} ({name} {row[last]:.2g})" for name, row in dead.iterrows()]
    return f"Dead: {'; '.join(told)}." if told else f"All {len(found)} signs say: alive."
