"""What the tiny backbone learns from."""

import numpy as np
import pytest

from tests.shapes.grammar import participle
from tvrkit.shapes.captions import WORDS
from tvrkit.shapes.render import SIDE
from tvrkit.shapes.scenes import FACTORS, VALUES
from tvrkit.shapes.stills import CAPTIONS, SEEN, sample_captions, stills, swapped_stills


def test_english_captions_fit_the_tokenizer():
    captions = sample_captions(3000, 1)
    assert max(len(text.replace(",", " ,").split()) for text in captions[::2]) <= 30
    assert len(set(captions)) > 2800
    assert all(text.isascii() for text in captions[::2])
    assert not any(text.isascii() for text in captions[1::2])


def test_stills_show_and_tell_one_frame():
    data, again = stills(30, 0), stills(10, 0)
    assert data.images.shape == (30, SIDE, SIDE, 3)
    assert data.images.dtype == np.uint8
    assert (again.images == data.images[:10]).all()
    assert again.captions == {name: texts[:10] for name, texts in data.captions.items()}
    moving = [word for table in WORDS["en"]["motion"].values() for word in table]
    moving += [participle(word) for word in moving]
    moving += [word for table in WORDS["zh"]["motion"].values() for word in table]
    for language, captions in data.captions.items():
        assert all(len(texts) == CAPTIONS + 1 for texts in captions)
        texts = [text for named in captions for text in named[:CAPTIONS]]
        assert len(texts) == 30 * CAPTIONS
        assert all(text.isascii() == (language == "en") for text in texts)
        assert not [word for word in moving for text in texts if word in text]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_is_told_of_a_still_is_what_its_caption_names(language):
    data = stills(60, 1)
    assert 0 < (data.values < 0).mean() < 0.4  # scenes without a second object or event
    unseen = [name not in SEEN for name in FACTORS]
    assert not data.named[language][:, :CAPTIONS, unseen].any()
    assert data.named[language][:, CAPTIONS, unseen].any(axis=0).all()
    for values, captions, named in zip(
        data.values, data.captions[language], data.named[language], strict=True
    ):
        for caption, mentioned in zip(captions, named, strict=True):
            for factor, value, said in zip(FACTORS, values, mentioned, strict=True):
                if said:
                    words = WORDS[language][factor][VALUES[factor][value]]
                    words = words + [participle(word) for word in words]
                    assert any(word in caption for word in words), (factor, caption)


def test_swapped_stills_differ_where_the_factor_is_seen():
    images, captions = swapped_stills(8, "colour", "en", 0)
    assert images.shape == (8, 2, SIDE, SIDE, 3)
    assert len(captions) == 8
    assert all((own != other).any() for own, other in images)
    assert (swapped_stills(8, "colour", "en", 0)[0] == images).all()
