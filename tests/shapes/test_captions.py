"""Every attribute word is a word for what is true, and nothing else is said."""

import numpy as np
import pytest

from tests.shapes.grammar import participle
from tvrkit.shapes.captions import WORDS, mention, tell
from tvrkit.shapes.scenes import PRESETS, VALUES, random_scene


def test_the_words_cover_the_values_and_are_unambiguous():
    for words in WORDS.values():
        assert {factor: set(table) for factor, table in words.items()} == {
            factor: set(values) for factor, values in VALUES.items()
        }
        for table in words.values():
            flat = [word for synonyms in table.values() for word in synonyms]
            assert len(flat) == len(set(flat))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_attribute_span_is_a_word_for_what_is_true(language):
    rng = np.random.default_rng(0)
    for _ in range(1500):
        scene = random_scene(PRESETS["hard"], rng)
        mentioned = mention(scene, rng.choice([0.0, 0.5, 0.9]), rng)
        text, spans = tell(scene, mentioned, language, 0.5, rng)
        assert {factor for _, _, factor in spans} == set(mentioned)
        assert len(spans) == len(mentioned) > 0
        rest = text
        for start, end, factor in sorted(spans, reverse=True):
            words = WORDS[language][factor][vars(scene)[factor]]
            allowed = {*words} | (
                {participle(word) for word in words} if factor in ("motion", "then") else set()
            )
            assert text[start:end] in allowed
            rest = rest[:start] + "_" + rest[end:]
        for factor in (
            "shape",
            "colour",
            "background",
            "motion",
        ):  # and nothing is said outside the spans
            spoken = [word for synonyms in WORDS[language][factor].values() for word in synonyms]
            assert not [word for word in spoken if word in rest.replace("coloured", "")]
        assert text == text.strip()
        assert "  " not in text
        assert " ," not in text
