"""What the tiny backbone learns from."""

import numpy as np

from tests.shapes.grammar import participle
from tvrkit.shapes.captions import WORDS
from tvrkit.shapes.render import SIDE
from tvrkit.shapes.stills import sample_captions, stills


def test_english_captions_fit_the_tokenizer():
    captions = sample_captions(3000, 1)
    assert max(len(text.replace(",", " ,").split()) for text in captions[::2]) <= 30
    assert len(set(captions)) > 2800
    assert all(text.isascii() for text in captions[::2])
    assert not any(text.isascii() for text in captions[1::2])


def test_stills_show_and_tell_one_frame():
    images, captions = stills(30, 0)
    assert images.shape == (30, SIDE, SIDE, 3)
    assert images.dtype == np.uint8
    again, same = stills(10, 0)
    assert (again == images[:10]).all()
    assert same == captions[:10]
    moving = [word for table in WORDS["en"]["motion"].values() for word in table]
    moving += [participle(word) for word in moving]
    moving += [word for table in WORDS["zh"]["motion"].values() for word in table]
    for told in captions:
        english = [text for text in told if text.isascii()]
        assert 1 <= len(english) <= 3
        assert 1 <= len(told) - len(english) <= 3
        assert told == english + told[len(english) :]
        assert not [word for word in moving for text in told if word in text]
