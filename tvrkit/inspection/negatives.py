"""Hard negatives: how many are mined, how hard and how stable they are, and how many are no
negatives at all.

Masks are (N_t, N_v) bool over captions and videos; every number comes with a 95 % interval (value,
low, high), for which videos are resampled with all their captions.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize

from tvrkit.data.manifest import Split
from tvrkit.evaluation.statistics import ratio_interval
from tvrkit.inspection.attention import EncodedSplit
from tvrkit.inspection.diagnostics import Interval
from tvrkit.losses.contrastive import neg_nce
from tvrkit.losses.miners import margin_negatives, top_k_negatives

Masks = Mapping[str, np.ndarray]
BLOCK = 256  # captions compared with all others at a time
LIKE = 0.8  # likeness from which a caption counts as a near duplicate


def caption_likeness(captions: Sequence[str], video_of_caption, *, size: int = 3) -> np.ndarray:
    """How like each caption is to the captions of each video: the largest cosine of their n-gram
    counts.

    Characters, not words: it serves languages without blanks, and forgives endings. A word is as
    long as it is, so a changed colour changes as much as a changed article: likeness finds repeats,
    it does not understand.

    Args:
        captions: N_t texts.
        video_of_caption: (N_t,) int; every video in 0..N_v-1 has one.
        size: characters of an n-gram.

    Returns:
        (N_t, N_v) float32 in 0..1; a caption's own video has 1.
    """
    owner, pad = np.asarray(video_of_caption), " " * (size - 1)
    texts = pd.Series([pad + " ".join(text.lower().split()) + pad for text in captions])
    grams = texts.map(lambda text: [text[i : i + size] for i in range(len(text) - size + 1)])
    grams = grams.explode()
    ones = np.ones(len(grams), np.float32)
    counts = sparse.csr_array((ones, (grams.index, pd.factorize(grams)[0])))
    lengths = np.sqrt(counts.multiply(counts).sum(axis=1))
    counts = (sparse.diags_array(1 / lengths) @ counts).astype(np.float32)
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(owner.max() + 1))
    others = counts[order].T.tocsr()
    blocks = [counts[start : start + BLOCK] for start in range(0, len(texts), BLOCK)]
    best = [np.maximum.reduceat((block @ others).toarray(), starts, axis=1) for block in blocks]
    return np.concatenate(best).clip(0, 1)


def mined_sets(similarity: np.ndarray, match: np.ndarray) -> dict[str, np.ndarray]:
    """What each miner of `tvrkit.losses.miners` mines of (N_t, N_v) scores: "margin" NegNCE's set
    with margin 0, "top_k" as many per text as that has on average."""
    pair = torch.from_numpy(similarity), torch.from_numpy(match)
    margin = margin_negatives(*pair)
    count = max(1, round(int(margin.sum()) / len(match)))
    return {"margin": margin.numpy(), "top_k": top_k_negatives(*pair, k=count).numpy()}


def hardest_queries(
    mined: np.ndarray, wanted: np.ndarray, video_of_caption, count: int = 3
) -> list[int]:
    """Queries with most mined pairs of the wanted kind, then with most mined pairs, each of another
    neighbourhood: none's video is another's, or is mined for it."""
    order = np.lexsort((-mined.sum(axis=1), -(mined & wanted).sum(axis=1)))
    queries: list[int] = []
    used = np.zeros(mined.shape[1], bool)
    for query in order:
        if len(queries) < count and not used[video_of_caption[query]]:
            queries.append(int(query))
            used |= mined[query]
            used[video_of_caption[query]] = True
    return queries


def near_duplicates(
    split: Split, mined: np.ndarray, likeness: np.ndarray, kinds: Masks
) -> pd.DataFrame:
    """Mined pairs whose captions are nearly the same, most alike first: query, the first caption of
    the mined video, likeness, kind."""
    first = split.captions.drop_duplicates("video_id").set_index("video_id")["caption"]
    queries, videos = np.nonzero(mined & (likeness >= LIKE))
    texts = split.captions["caption"].to_numpy()[queries]
    table = pd.DataFrame({"query": texts, "mined": first[np.take(split.video_ids, videos)].array})
    named = np.select([mask[queries, videos] for mask in kinds.values()], list(kinds), "")
    table = table.assign(likeness=likeness[queries, videos], kind=named)
    return table.sort_values("likeness", ascending=False, kind="stable", ignore_index=True)


def mining_quality(mined, video_of_caption, kinds: Masks) -> dict[str, Interval]:
    """How many pairs are mined, and which.

    Args:
        mined: (N_t, N_v) bool.
        video_of_caption: (N_t,) int.
        kinds: masks to hold it against.

    Returns:
        "mined per caption"; for each kind "kind, % of mined" (precision, where the kind is what is
        wanted) and "kind, % found" (recall). NaN where nothing is mined or of the kind.
    """
    count = mined.sum(axis=1)
    quality = {"mined per caption": ratio_interval(count, np.ones(len(count)), video_of_caption)}
    for kind, mask in kinds.items():
        hits = 100 * (mined & mask).sum(axis=1)
        quality[f"{kind}, % of mined"] = ratio_interval(hits, count, video_of_caption)
        quality[f"{kind}, % found"] = ratio_interval(hits, mask.sum(axis=1), video_of_caption)
    return quality


def over_training(
    mined: pd.DataFrame, epochs: Sequence[int], video_of_caption, kinds: Masks
) -> pd.DataFrame:
    """`mining_quality` after each epoch, how hard the mined pairs are, and how many stay.

    Args:
        mined: of `Run.mined`: epoch, row, column, excess.
        epochs: all of them in order, also those in which nothing was mined.
        video_of_caption: (N_t,) int, of the split that was mined.
        kinds: masks of that split.

    Returns:
        Rows of epoch, quantity, value, low, high. Beside `mining_quality`'s: "excess over the
        match", the mean; "mined again, %", of the pairs mined now or an epoch before those mined
        both times (Jaccard; none for the first epoch).
    """
    owner, shape = np.asarray(video_of_caption), next(iter(kinds.values())).shape
    # a table without rows is read as objects
    mined = mined.astype({"row": int, "column": int, "excess": float})
    rows, before = [], None
    for epoch in epochs:
        table, now = mined[mined["epoch"] == epoch], np.zeros(shape, bool)
        now[table["row"], table["column"]] = True
        excess = np.bincount(table["row"], table["excess"], minlength=len(owner))
        quality = mining_quality(now, owner, kinds)
        quality["excess over the match"] = ratio_interval(excess, now.sum(axis=1), owner)
        if before is not None:
            both, either = (now & before).sum(axis=1), (now | before).sum(axis=1)
            quality["mined again, %"] = ratio_interval(100 * both, either, owner)
        rows += [(epoch, quantity, *interval) for quantity, interval in quality.items()]
        before = now
    return pd.DataFrame(rows, columns=["epoch", "quantity", "value", "low", "high"])


def push(similarity: Tensor, *, negative_weight: float, **options) -> tuple[np.ndarray, np.ndarray]:
    """How hard the loss pushes each pair apart, dL/dS_ij: by InfoNCE alone, and what NegNCE adds to
    it.

    Args:
        similarity: (B, B) float of matched pairs.
        negative_weight: of NegNCE; `options` are its others.

    Returns:
        Two (B, B) float64; positive lowers the score. What is added sums to 0 over the batch, for
        softmax gives back at the other entries of a row what it takes from the mined ones: only
        what is pushed harder is positive.
    """
    gradients = []
    for weight in (0.0, negative_weight):
        scores = similarity.detach().double().clone().requires_grad_()
        loss = neg_nce(scores, negative_weight=weight, **options)
        gradients.append(torch.autograd.grad(loss, scores)[0].numpy())
    return gradients[0], gradients[1] - gradients[0]


def push_by_kind(
    similarity: np.ndarray,
    kinds: Masks,
    video_of_caption: np.ndarray,
    *,
    batch_size: int,
    batches: int = 200,
    seed: int = 0,
    **options,
) -> pd.DataFrame:
    """How hard the loss pushes a pair of each kind apart, on batches drawn from a gallery.

    A batch holds one caption of each of `batch_size` videos; only what is pushed apart counts, not
    what softmax gives back. For the intervals videos are resampled, each with its pairs in all
    batches.

    Args:
        similarity: (N_t, N_v) float.
        kinds: masks, "match" among them.
        video_of_caption: (N_t,) int.
        options: of `push`.

    Returns:
        Rows of side ("InfoNCE", "NegNCE adds", and "added share": the second over the first), kind,
        value, low, high, pairs (in a batch). The sides are per pair, in units of the average pair.
    """
    rng, videos = np.random.default_rng(seed), similarity.shape[1]
    names = [kind for kind in kinds if kind != "match"]
    pairs, pushed = np.zeros((len(names), videos)), np.zeros((2, len(names), videos))
    for _ in range(batches):
        drawn = rng.choice(videos, batch_size, replace=False)
        texts = [rng.choice(np.flatnonzero(video_of_caption == video)) for video in drawn]
        cells = np.ix_(texts, drawn)
        inside = np.stack([kinds[kind][cells] for kind in names])
        gradients = np.stack(push(torch.from_numpy(similarity[cells]), **options)).clip(min=0)
        pairs[:, drawn] += inside.sum(axis=2)
        pushed[:, :, drawn] += (gradients[:, None] * inside).sum(axis=3)
    alone, added = pushed * pairs.sum() / pushed.sum(axis=(1, 2), keepdims=True)  # average pair: 1
    ratios = {"InfoNCE": (alone, pairs), "NegNCE adds": (added, pairs)}
    ratios["added share"] = pushed[1], pushed[0]
    rows = [
        (side, kind, *ratio_interval(over, under), count)
        for side, parts in ratios.items()
        for kind, over, under, count in zip(names, *parts, pairs.sum(axis=1) / batches, strict=True)
    ]
    return pd.DataFrame(rows, columns=["side", "kind", "value", "low", "high", "pairs"])


def embed(encoded: EncodedSplit) -> tuple[np.ndarray, np.ndarray]:
    """Unit sentence vectors (N_t, D) and video vectors (N_v, D) of a split.

    A video is the method's own vector where it has one, else the mean of its frames: less than what
    a token-wise score looks at, but what one can draw.
    """
    videos = encoded.videos
    mean = (normalize(videos.frames, dim=-1) * videos.mask[..., None]).sum(dim=1)
    sides = encoded.texts.sentence, mean if videos.video is None else videos.video
    texts, clips = (normalize(side.float(), dim=-1).cpu().numpy() for side in sides)
    return texts, clips


def nearness(
    texts: np.ndarray, videos: np.ndarray, kinds: Masks, video_of_caption
) -> dict[str, Interval]:
    """By how much texts are nearer to their own videos than to videos of each kind.

    Difference of inner products of texts (N_t, D) and videos (N_v, D), both sides centred.
    """
    products = (texts - texts.mean(axis=0)) @ (videos - videos.mean(axis=0)).T
    gaps = products[np.arange(len(texts)), video_of_caption][:, None] - products
    sums = {kind: ((gaps * mask).sum(axis=1), mask.sum(axis=1)) for kind, mask in kinds.items()}
    return {kind: ratio_interval(*sums[kind], video_of_caption) for kind in kinds}


def plane(texts: np.ndarray, videos: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Texts (N_t, 2) and videos (N_v, 2) on the two main axes of both (PCA), and the share of
    variance they keep.

    Each side is centred by itself: between the two lies CLIP's modality gap, which says nothing
    about pairs and would be the first axis.
    """
    centred = [side - side.mean(axis=0) for side in (texts, videos)]
    _, spread, axes = np.linalg.svd(np.concatenate(centred), full_matrices=False)
    largest = np.abs(axes[:2]).argmax(axis=1)
    axes = axes[:2] * np.sign(axes[[0, 1], largest])[:, None]  # the sign is free: fix it
    shares = spread**2 / (spread @ spread)
    return *(side @ axes.T for side in centred), float(shares[:2].sum())
