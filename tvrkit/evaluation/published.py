"""Published numbers beside ours, for the same data set, protocol and language only."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from tvrkit import files
from tvrkit.evaluation.evaluate import WAYS, Evaluation

FILE = "published_results.csv"
NUMBERS = ("R@1", "R@5", "R@10", "MdR", "MnR")
KEYS = ("direction", "postprocess", "method", "backbone", "pretraining")


def table() -> pd.DataFrame:
    """data/published_results.csv: a row per published number, with `source`, and `trust` ("seen",
    "second-hand").

    Cells nobody could read are empty (NaN).

    Raises:
        FileNotFoundError: neither the home folder nor the checkout has it.
    """
    folders = [files.home() / "data", files.PACKAGE.parent / "data"]
    found = [folder / FILE for folder in folders if (folder / FILE).exists()]
    if not found:
        raise FileNotFoundError(f"no {FILE} in data/: it comes with the checkout of the project")
    read = pd.read_csv(found[0], dtype=str, keep_default_na=False)
    return read.assign(**{name: pd.to_numeric(read[name]) for name in NUMBERS})


def beside(
    ours: Mapping[str, tuple[str, Evaluation]], card: Mapping, language: str
) -> pd.DataFrame:
    """Published rows of a data set's protocol and language, and ours, raw and post-processed, by
    direction.

    A row whose source does not name its protocol never appears, and where nothing is published for
    this protocol the
    table is empty: ours alone has nothing to stand beside.

    Args:
        ours: name of the method -> (backbone, evaluation); all on the data set of `card`.
        card: card.json of the prepared data set.
        language: of its captions.

    Returns:
        DataFrame: direction, postprocess, method, backbone, pretraining, `NUMBERS`, source, trust.
        Ours have the trust "ours", or "ours, not comparable" where the set is not the protocol's
        whole one.
    """
    known = table().query(
        "protocol != '' and protocol == @card['protocol'] and language == @language"
    )
    whole = not (
        card.get("partial") or card.get("mismatches")
    )  # shapes and whole sets have neither
    rows = []
    for name, (backbone, evaluation) in ours.items():
        found = evaluation.metrics
        trust = "ours" if whole and found["complete"] else "ours, not comparable"
        about = {
            "method": name,
            "backbone": backbone,
            "pretraining": "see recipe",
            "source": "this run",
            "trust": trust,
        }
        for process, of in {"raw": found, **found["postprocess"]}.items():
            rows += [{"direction": way, "postprocess": process, **about, **of[way]} for way in WAYS]
    columns = [*KEYS, *NUMBERS, "source", "trust"]
    if known.empty:
        return pd.DataFrame(columns=columns)
    both = pd.concat([known[columns], pd.DataFrame(rows, columns=columns)], ignore_index=True)
    return both.sort_values(
        ["direction", "postprocess", "R@1"], ascending=[True, False, False], ignore_index=True
    )
