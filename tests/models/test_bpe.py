"""Byte-level BPE against plain loops, and as open_clip's tokenizer reads it."""

from itertools import pairwise

import pytest

from tvrkit.files import sha256
from tvrkit.models.backbone import create_backbone
from tvrkit.models.bpe import UNMERGED, learn_merges, write_merges
from tvrkit.settings import BackboneConfig


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(BackboneConfig()).eval()


def naive_merges(words: list[list[str]], count: int) -> list[tuple[str, str]]:
    """The most frequent pair, over and over, with every word written out as often as it occurs."""
    merges = []
    for _ in range(count):
        pairs = [pair for word in words for pair in pairwise(word)]
        merges.append(max(set(pairs), key=lambda pair: (pairs.count(pair), pair)))
        for index, word in enumerate(words):
            merged = []
            while word:
                size = 2 if tuple(word[:2]) == merges[-1] else 1
                merged.append("".join(word[:size]))
                word = word[size:]
            words[index] = merged
    return merges


def test_merges_are_those_of_plain_loops():
    captions = [
        "low low low low low",
        "lower lower Newest newest newest",
        "newest newest newest widest widest widest",
    ]
    words = [
        [*word[:-1], word[-1] + "</w>"] for caption in captions for word in caption.lower().split()
    ]
    assert learn_merges(captions, UNMERGED + 9) == naive_merges(words, 9)


def test_merging_ends_where_no_pair_occurs_twice():
    assert learn_merges(["ab ab cd"], 10_000) == [("a", "b</w>")]


def test_tokenizer_reads_the_merges_and_any_text_comes_back(backbone, tmp_path):
    write_merges(learn_merges(["a red circle", "a red square"], 600), tmp_path / "a.gz")
    write_merges(learn_merges(["a red circle", "a red square"], 600), tmp_path / "b.gz")
    assert sha256(tmp_path / "a.gz") == sha256(tmp_path / "b.gz")
    for text in ["a red circle on the left", "一个红色的圆", "naïve 日本語 🙂"]:
        assert backbone.tokenizer.decode(backbone.tokenizer.encode(text)).replace(
            " ", ""
        ) == text.replace(" ", "")
    assert backbone.tokenizer.vocab_size == backbone.clip.vocab_size
