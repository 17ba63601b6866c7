"""Rankings for other programs: TREC's run and qrels files."""

import re
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from tvrkit import files
from tvrkit.evaluation.evaluate import Evaluation

DEPTH = 1000  # candidates a query, as trec_eval reads them


def write_trec(evaluation: Evaluation, folder: Path, tag: str) -> None:
    """Write NAME.run ("query Q0 candidate rank score tag", the best `DEPTH`) and NAME.qrels.

    With an evaluation tool's Success@K in percent: "t2v" has the kit's t2v R@K. In "v2t" all
    captions of a video are one candidate, named by it: v2t R@K. In "v2t-captions" each is one, and
    all own ones are relevant: first hit v2t R@K.

    Candidates of the same score stand by the run's tie rule (pessimistic: the match last);
    programs that sort by score alone break ties in ways of their own. Blanks and % in ids are
    written as in addresses.

    Args:
        folder: made where it is not there.
        tag: the last column, the name of the run.
    """
    scores, owner = np.asarray(evaluation.similarity), evaluation.video_of_caption
    own = owner[:, None] == np.arange(scores.shape[1])
    captions, videos = (_words(ids) for ids in (evaluation.caption_ids, evaluation.video_ids))
    best = pd.DataFrame(scores).groupby(owner).max().to_numpy().T  # a video's best caption
    rankings = {
        "t2v": (scores, own, captions, videos),
        "v2t": (best, np.eye(len(videos), dtype=bool), videos, videos),
        "v2t-captions": (scores.T, own.T, videos, captions),
    }
    lose, tag = evaluation.metrics["ties"] != "optimistic", _words([tag])[0]
    for name, (values, match, queries, candidates) in rankings.items():
        order = np.lexsort((match == lose, -values))[:, :DEPTH]
        run = [
            f"{queries[row]} Q0 {candidates[column]} {rank} {values[row, column]:.9g} {tag}"
            for row, ranked in enumerate(order)
            for rank, column in enumerate(ranked, 1)
        ]
        qrels = [f"{queries[row]} 0 {candidates[column]} 1" for row, column in np.argwhere(match)]
        files.write_text(folder / f"{name}.run", "\n".join([*run, ""]))
        files.write_text(folder / f"{name}.qrels", "\n".join([*qrels, ""]))


def _words(ids) -> np.ndarray:
    """Ids without blanks, which part the columns."""
    return np.array([re.sub(r"[\s%]", lambda match: quote(match[0]), name) for name in ids])
