"""Byte-level BPE merges in the form that open_clip's tokenizer reads."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer

from tvrkit import files
from tvrkit.data.text import load_jieba

UNMERGED = 2 * 256 + 2  # bytes, bytes that end a word, SOT and EOT


def learn_merges(captions: list[str], vocabulary: int) -> list[tuple[str, str]]:
    """Byte-level BPE (Sennrich et al., 2016) in CLIP's alphabet: the most frequent pair becomes
    one.

    CLIP's tokenizer takes a run of Chinese characters for one word. Merges are counted within the
    words that jieba finds in it, so that tokens hardly ever reach across a word boundary.

    Args:
        captions: texts of any language.
        vocabulary: size of the vocabulary; it stays smaller where no pair is left that occurs
            twice.

    Returns:
        Pairs of symbols, first merged first.
    """
    jieba = load_jieba()
    tokenizer = SimpleTokenizer()  # for its alphabet, its cleaning and its division into words
    words: Counter[tuple[str, ...]] = Counter()
    for caption in captions:
        for run in tokenizer.pat.findall(tokenizer.clean_fn(caption)):
            encoded = (word.encode("utf-8") for word in jieba.cut(run))
            *inner, last = ([tokenizer.byte_encoder[byte] for byte in word] for word in encoded)
            words.update(map(tuple, inner))
            words[(*last[:-1], last[-1] + "</w>")] += 1
    merges: list[tuple[str, str]] = []
    while len(merges) < vocabulary - UNMERGED:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        best = max(pairs, key=lambda pair: (pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        words = Counter({_merge(word, best): times for word, times in words.items()})
    return merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def write_merges(merges: list[tuple[str, str]], path: Path) -> None:
    """The gzip file that open_clip's SimpleTokenizer reads: a line it skips, then one merge per
    line."""
    lines = ["#version: tvrkit", *(" ".join(pair) for pair in merges)]
    files.write_gzip(path, "\n".join(lines))
