"""Tokens, their masks and weights on every kind of caption; taggers; keyword masking."""

import gzip
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrkit.data import text
from tvrkit.data.text import KeywordMasker, Tagger, token_spans, tokenise

# isort: split
from open_clip.tokenizer import (  # after tvrkit, which mends torchvision for it
    HFTokenizer,
    SimpleTokenizer,
)

CAPTIONS = [
    "a man is slowly cooking delicious food in the kitchen",
    "Two DOGS don't   run\tacross the café's red-brick yard!",
    "",
    "   \n ",
    "😀 a dog 🐕‍🦺 runs 😀😀",
    "a man 一只红色的狗 runs Привет мир",
    "İstanbul ﬁlm &amp;amp; naïve",
    "word " * 500,
    "x" * 20_000,
    "a lone \ud800 surrogate",
]


@pytest.fixture(scope="module")
def clip():
    return SimpleTokenizer()


@pytest.fixture(scope="module")
def english():
    return Tagger("en")


@pytest.fixture(scope="module")
def chinese():
    return Tagger("zh")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """CLIP's BPE with three merges only: all else falls apart into bytes, as in the embedded
    tokenizer."""
    path = tmp_path_factory.mktemp("bpe") / "merges.txt.gz"
    path.write_bytes(gzip.compress(b"#version\nr e\nre d</w>\nd o\n"))
    return SimpleTokenizer(bpe_path=str(path), context_length=32)


@pytest.fixture(scope="module", params=["wordpiece", "unigram"])
def hugging_face(request, tmp_path_factory):
    """A Chinese BERT and an XLM-R in small, made here: same model classes, same cleaning, own
    vocabulary."""
    transformers = pytest.importorskip(
        "transformers", reason="the Chinese and multilingual towers are an extra"
    )
    tokenizers = pytest.importorskip("tokenizers")
    if request.param == "wordpiece":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        words = [*"一只红色的狗在草地上奔跑", "a", "dog", "run", "##s", "red"]
        vocabulary = {word: index for index, word in enumerate([*special, *words])}
        made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
        made.normalizer = tokenizers.normalizers.BertNormalizer()
        made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        start, end, pad, unknown = "[CLS]", "[SEP]", "[PAD]", "[UNK]"
    else:
        pieces = ["▁", "▁a", "▁dog", "▁run", "s", "▁red", *"一只红色的狗在草地上奔跑"]
        vocabulary = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
        vocabulary += [(piece, -float(index + 1)) for index, piece in enumerate(pieces)]
        made = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=3))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        start, end, pad, unknown = "<s>", "</s>", "<pad>", "<unk>"
    ids = [(start, made.token_to_id(start)), (end, made.token_to_id(end))]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        f"{start} $A {end}", special_tokens=ids
    )
    folder = tmp_path_factory.mktemp(request.param)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=pad, unk_token=unknown, cls_token=start, sep_token=end
    ).save_pretrained(folder)
    return HFTokenizer(str(folder), context_length=77)


@pytest.mark.parametrize("length", [2, 3, 32, 64])
def test_clip_ids_are_open_clips_own(clip, byte_level, length):
    for tokenizer in (clip, byte_level):
        tokens, mask, weight = tokenise(CAPTIONS, tokenizer, length)
        assert tokens.shape == mask.shape == weight.shape == (len(CAPTIONS), length)
        assert tokens.equal(tokenizer(CAPTIONS, context_length=length))
        assert weight.equal(mask.long())
        last = mask.sum(1) - 1
        assert (tokens[:, 0] == tokenizer.sot_token_id).all()
        assert (tokens.gather(1, last[:, None]) == tokenizer.eot_token_id).all()
        assert (tokens[~mask] == 0).all()


@pytest.mark.parametrize("length", [8, 32, 64])
def test_hugging_face_ids_are_open_clips_own(hugging_face, chinese, length):
    captions = [caption for caption in CAPTIONS if "\ud800" not in caption]
    tokens, mask, weight = tokenise(captions, hugging_face, length, chinese)
    assert tokens.equal(hugging_face(captions, context_length=length))
    last = mask.sum(1) - 1
    assert (tokens.gather(1, last[:, None]) == hugging_face.tokenizer.sep_token_id).all()
    assert (tokens[~mask] == hugging_face.tokenizer.pad_token_id).all()
    assert ((weight > 0) == mask).all()
    assert (weight[:, 0] == 1).all()
    assert (weight.gather(1, last[:, None]) == 1).all()


def test_chinese_content_words_on_hugging_face_tokens(hugging_face, chinese):
    caption = "一只红色的狗在草地上奔跑"
    tokens, _, weight = tokenise([caption], hugging_face, 32, chinese)
    pieces = hugging_face.tokenizer.convert_ids_to_tokens(tokens[0])
    boosted = "".join(piece for piece, value in zip(pieces, weight[0], strict=True) if value == 2)
    assert boosted.replace("▁", "") == "红色狗草地奔跑"


def test_content_words_weigh_two(clip, english):
    tokens, _, weight = tokenise(CAPTIONS[:1], clip, 32, english)
    words = {
        clip.decode([int(token)]).strip(): int(value)
        for token, value in zip(tokens[0], weight[0], strict=True)
    }
    for word in ("man", "cooking", "delicious", "food", "kitchen"):
        assert words[word] == 2, word
    for word in ("a", "is", "slowly", "in", "the", "<start_of_text>", "<end_of_text>"):
        assert words[word] == 1, word


def test_every_piece_of_a_content_word_is_boosted(byte_level, chinese):
    caption = "一只红色的狗奔跑"
    _, _, weight = tokenise([caption], byte_level, 32, chinese)
    per_character = weight[0, 1 : 1 + 3 * len(caption)].reshape(
        -1, 3
    )  # three bytes, hence tokens, each
    assert (per_character == per_character[:, :1]).all()
    content = "".join(
        character
        for character, value in zip(caption, per_character[:, 0], strict=True)
        if value == 2
    )
    assert content == "红色狗奔跑"


def test_spans_hold_the_text_of_their_token(clip, byte_level):
    for tokenizer in (clip, byte_level):
        for caption in CAPTIONS[:7]:
            text = tokenizer.clean_fn(caption)
            tokens, mask, _ = tokenise([caption], tokenizer, 64)
            (spans,) = token_spans([caption], tokenizer, 64)
            assert [column for column, _ in spans] == list(range(1, int(mask.sum()) - 1))
            covered = {index for _, (start, end) in spans for index in range(start, end)}
            if int(mask.sum()) < 64:
                assert covered == {
                    index for index, character in enumerate(text) if not character.isspace()
                }
            for column, (start, end) in spans:
                piece = tokenizer.decode([int(tokens[0, column])]).strip()
                assert "�" in piece or text[start:end] == piece


def test_a_written_end_of_text_does_not_end_the_caption(clip):
    tokens, mask, _ = tokenise(["a dog <end_of_text> and <|endoftext|> a cat"], clip, 32)
    assert (tokens[0] == clip.eot_token_id).sum() == 1
    assert tokens[0].argmax() == mask.sum() - 1


@settings(max_examples=150, deadline=None)
@given(captions=st.lists(st.text(), min_size=1, max_size=4), length=st.integers(2, 40))
def test_any_text_keeps_the_contract(clip, english, captions, length):
    tokens, mask, weight = tokenise(captions, clip, length, english)
    assert (mask.sum(1) >= 2).all()
    assert ((weight > 0) == mask).all()
    assert (weight <= 2).all()
    assert (weight[:, 0] == 1).all()
    assert ((tokens == clip.eot_token_id).sum(1) == 1).all()
    assert (tokens.argmax(1) == mask.sum(1) - 1).all()


def test_bad_input_is_one_clear_line(clip):
    with pytest.raises(ValueError, match="expected 2 or more, got 1"):
        tokenise(["a"], clip, 1)
    with pytest.raises(ValueError, match="captions: expected text, got None"):
        tokenise([None], clip, 32)
    with pytest.raises(ValueError, match="unknown language 'fr': expected one of en, zh"):
        Tagger("fr")


def test_taggers_are_named(english, chinese):
    assert english.name.startswith("en_core_web_sm")
    assert english.version.count(".") == 2
    assert (chinese.name, chinese.version) == ("jieba.posseg", "0.42.1")


def test_a_caption_is_tagged_once():
    tagger = Tagger("zh")
    calls = []
    inner = tagger.spans_of
    tagger.spans_of = lambda captions: calls.append(captions) or inner(captions)
    tagger.tag(["一只狗", "一只猫", "一只狗"])
    first = tagger.content_spans("一只狗")
    tagger.tag(["一只狗", "红色"])
    assert calls == [["一只狗", "一只猫"], ["红色"]]
    assert first == [(2, 3)]


def naive_weight(word, video, captions_by_video):
    documents = {
        key: " ".join(captions).lower().split() for key, captions in captions_by_video.items()
    }
    share = documents[video].count(word) / len(documents[video])
    return share * np.log(len(documents) / sum(word in words for words in documents.values()))


CORPUS = {
    "a": [
        "a man is cooking food in the kitchen",
        "A man cooks food",
        "cooking show on the television",
    ],
    "b": ["a dog runs", "the dog is running in the yard"],
    "c": ["a red car is driving", "the car drives on a road in the evening"],
}


def masked(masker, video_id, caption, generator):
    return masker.mask(video_id, caption, generator, [])[0]


def test_only_light_words_are_dropped():
    masker = KeywordMasker(CORPUS)
    caption = CORPUS["a"][0]
    dropped = set()
    for seed in range(200):
        kept = masked(masker, "a", caption, np.random.default_rng(seed)).split()
        assert len(kept) >= len(caption.split()) / 2
        rest = iter(caption.split())
        assert all(word in rest for word in kept), "the order stays"
        dropped |= set(caption.split()) - set(kept)
    light = sorted(caption.split(), key=lambda word: naive_weight(word, "a", CORPUS))
    light = [word for word in light if naive_weight(word, "a", CORPUS) < 0.1][:4]
    assert dropped == set(light)


def test_masking_follows_the_generator():
    masker = KeywordMasker(CORPUS)
    runs = [
        [masked(masker, "c", CORPUS["c"][1], rng) for _ in range(20)]
        for rng in map(np.random.default_rng, (3, 3, 4))
    ]
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) > 3


def test_masking_small_and_foreign_captions():
    rng = np.random.default_rng(0)
    masker = KeywordMasker({"a": ["dog", "", "one"], "b": ["x y"]})
    assert [masked(masker, "a", text, rng) for text in ("dog", "", "one")] == ["dog", "", "one"]
    with pytest.raises(ValueError, match="expected a caption of video 'a'"):
        masked(masker, "a", "cat", rng)
    with pytest.raises(ValueError, match="expected a caption of video 'z'"):
        masked(masker, "z", "dog", rng)


def test_chinese_masking_drops_whole_words():
    corpus = {"a": ["一只红色的狗在草地上奔跑", "一只狗奔跑"], "b": ["一只蓝色的猫在草地上睡觉"]}
    masker = KeywordMasker(corpus, "zh")
    seen = {masked(masker, "a", corpus["a"][0], np.random.default_rng(k)) for k in range(50)}
    assert len(seen) > 3
    assert all("狗" in caption and "奔跑" in caption and " " not in caption for caption in seen)


def test_chinese_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(
        ValueError, match=r"jieba, which is not installed: pip install 'tvrkit\[zh\]'"
    ):
        Tagger("zh")


def test_tags_stay_on_disk_by_content_and_neither_they_nor_the_model_are_made_again(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    captions = [f"a red ball rolls over stone {number}" for number in range(text.KEPT)]
    first, second = Tagger("en"), Tagger("en")
    first.tag(captions[:3])  # too few to keep
    assert not (tmp_path / "data").exists()
    first, other = Tagger("en"), Tagger("en")
    first.tag(captions)
    second.spans_of = other.spans_of = lambda new: (pytest.fail("tagged again") for _ in new)
    second.tag(captions)
    assert [second.content_spans(caption) for caption in captions] == [
        first.content_spans(caption) for caption in captions
    ]
    assert first.content_spans(captions[0])[:3] == [(2, 5), (6, 10), (11, 16)]
    other.version = "of another model"
    with pytest.raises(pytest.fail.Exception, match="tagged again"):
        other.tag(captions)


@pytest.mark.parametrize(
    ("language", "caption"),
    [
        ("en", "in the clip a red ball rolls over the green grass"),
        ("zh", "一只红色的狗在草地上奔跑"),
    ],
)
def test_a_word_of_a_masked_caption_keeps_its_class(language, caption, english, chinese):
    tagger = {"en": english, "zh": chinese}[language]
    spans = tagger.content_spans(caption)
    masker = KeywordMasker({"a": [caption], "b": [caption[:7]]}, language)
    seen = set()
    for seed in range(40):
        kept, content = masker.mask("a", caption, np.random.default_rng(seed), spans)
        assert kept == masked(masker, "a", caption, np.random.default_rng(seed))
        words = {kept[start:end] for start, end in content}
        assert words <= {caption[start:end] for start, end in spans}
        lost = {caption[start:end] for start, end in spans} - words
        assert all(word not in kept for word in lost)
        seen.add(kept)
    assert len(seen) > 3


def test_weights_of_masked_captions_are_those_of_the_whole(english, clip):
    captions = ["A red ball rolls over the grass", "the ball"]
    spans = [english.content_spans(clip.clean_fn(caption)) for caption in captions]
    whole = tokenise(captions, clip, 12, english)
    masked = tokenise(captions, clip, 12, content=spans)
    assert all(torch.equal(*pair) for pair in zip(whole, masked, strict=True))
    part = tokenise(["red rolls over"], clip, 12, content=[[(0, 3), (4, 9)]])
    assert part[2][0, :6].tolist() == [1, 2, 2, 1, 1, 0]
