"""What HMMC's pre-training holds: its batches, the keys of its queues, its momentum encoder, and
the words that it guesses."""

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import pandas as pd
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch.nn.functional import normalize

from tvrkit.data.loader import TrainData, train_loader
from tvrkit.data.manifest import Split
from tvrkit.data.text import token_spans, tokenise
from tvrkit.models.hmmc_pretraining import HMMCPretraining
from tvrkit.shapes.truth import Truth
from tvrkit.training import runs

Items = Sequence[tuple[int, int]]  # (epoch, item) of a batch
REPLACEMENT = "\ufffd"  # stands for bytes that are no text


def training_batches(run: runs.Run, method: HMMCPretraining) -> tuple[TrainData, list[Items]]:
    """The training data of a finished run, and which items each of its steps read, in order."""
    split = run.manifest.split("train", run.config.data.language)
    loader = train_loader(split, run.config, method.backbone, seed=run.seed)
    data, batches = cast(TrainData, loader.dataset), cast(Iterable[Items], loader.batch_sampler)
    order: list[Items] = []
    for epoch in range(run.config.train.epochs):
        data.set_epoch(epoch)
        order += batches
    return data, order


def key_numbers(pushed: int, size: int) -> np.ndarray:
    """(size,) int64 number, from 0, of the key in each column of a queue after `pushed` keys.

    Key n goes to column n mod size. -1 where the random start still is.
    """
    last = pushed - 1 - (pushed - 1 - np.arange(size)) % size
    return np.where(last < 0, -1, last)


def queued_keys(
    method: HMMCPretraining, data: TrainData, order: Sequence[Items], device: str = "cpu"
) -> pd.DataFrame:
    """The video keys in the queue of a finished pre-training, the oldest first.

    Returns:
        DataFrame: column (of the queue), age (steps since it was pushed), caption (row of the text
        it came with), own and other: its cosine with a key that is made now, of its own clip and of
        the next clip in the queue.
    """
    batch, keys = len(order[0]), method.queues["video"].keys
    numbers = key_numbers(batch * len(order), keys.shape[1])
    columns = np.argsort(numbers, kind="stable")[(numbers < 0).sum() :]
    steps = numbers[columns] // batch
    clips = [data.__getitems__(order[step]).to(device) for step in range(steps[0], len(order))]
    training = method.training
    with torch.no_grad():  # keys are made in training mode only
        made = [method.train().encode_video(clip).extras["video_key"] for clip in clips]
    method.train(training)
    rows = numbers[columns] - steps[0] * batch
    fresh = normalize(torch.cat(made), dim=-1)
    now, then = fresh[rows], keys[:, columns].T
    captions = torch.cat([clip.caption_index for clip in clips])[rows]
    table = {"column": columns, "age": len(order) - 1 - steps, "caption": captions.cpu().numpy()}
    cosines = {"own": (now * then).sum(dim=1), "other": (now.roll(1, dims=0) * then).sum(dim=1)}
    return pd.DataFrame(table | {name: cosine.cpu().numpy() for name, cosine in cosines.items()})


def own_video_queued(order: Sequence[Items], size: int) -> float:
    """Share (%) of all texts that met a key of their own video, of an earlier step, as a
    negative."""
    reach, met = size // len(order[0]), 0
    for step, batch in enumerate(order):
        queued = {item for before in order[max(0, step - reach) : step] for _, item in before}
        met += sum(item in queued for _, item in batch)
    return 100 * met / sum(map(len, order))


@torch.inference_mode()
def masked_words(
    method: HMMCPretraining, split: Split, truth: Truth, max_words: int, texts: int = 150
) -> pd.DataFrame:
    """Attribute words of captions, one at a time replaced by the mask token and guessed.

    Words of several tokens are left out.

    Returns:
        DataFrame, a row per word: caption, factor, word (as tokens are, see `token_text`), guesses
        (the three likeliest, with their probability), right (the likeliest is the word), token.
    """
    captions = split.captions[:texts]
    tokenizer, sentences = method.backbone.tokenizer, captions["caption"].tolist()
    tokens, mask, _ = tokenise(sentences, tokenizer, max_words)
    words = []
    for row, places in enumerate(token_spans(sentences, tokenizer, max_words)):
        for start, end, factor in truth.attribute_words(captions["caption_id"].iloc[row]):
            inside = [column for column, (a, b) in places if a < end and b > start]
            words += [(row, inside[0], factor)] if len(inside) == 1 else []
    rows, columns, factors = map(list, zip(*words, strict=True))
    right, masked, every = tokens[rows, columns], tokens[rows], torch.arange(len(rows))
    masked[every, columns] = method.mask_token
    device = next(method.parameters()).device
    hidden = method.backbone.encode_text(masked.to(device), mask[rows].to(device))[0]
    best = method.word_head(hidden[every, columns]).softmax(dim=-1).cpu().topk(3)
    table = pd.DataFrame({"caption": np.take(sentences, rows), "factor": factors})
    table["word"] = [token_text(tokenizer, token) for token in right.tolist()]
    guesses = pd.DataFrame(best.indices.numpy()).map(lambda token: token_text(tokenizer, token))
    chances = pd.DataFrame(best.values.numpy()).map(" {:.2f}".format)
    table["guesses"] = (guesses + chances).agg(", ".join, axis=1)
    return table.assign(right=(best.indices[:, 0] == right).numpy(), token=right.numpy())


def token_text(tokenizer, token: int) -> str:
    """A token as a reader can see it: its text in quotes, or the bytes of a part of a character.

    Byte-level BPE may cut a Chinese character, whose three bytes are no text one by one.
    """
    if not isinstance(tokenizer, SimpleTokenizer):
        return f"“{tokenizer.tokenizer.decode([token]).strip()}”"
    text = tokenizer.decode([token]).removesuffix(" ")
    if REPLACEMENT not in text:
        return f"“{text}”"
    piece = tokenizer.decoder[token].removesuffix("</w>")
    return f"bytes {bytes(map(tokenizer.byte_decoder.__getitem__, piece)).hex(' ')}"
