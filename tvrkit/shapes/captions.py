"""The caption grammar of the shapes data set: scenes told in English and Chinese.

A caption is put together as pieces (text, factor) from the templates and word tables of
`assets/shapes_captions.yaml`, so that the place of every attribute word in the finished text is
known.
"""

from string import Formatter

import numpy as np
import yaml

from tvrkit import files
from tvrkit.settings import choose
from tvrkit.shapes.scenes import Scene

Pieces = list[tuple[str, str]]  # text, and the factor it names or ""
Spans = list[tuple[int, int, str]]  # first character, character after the last, factor

GRAMMAR = yaml.safe_load((files.ASSETS / "shapes_captions.yaml").read_text(encoding="utf-8"))
WORDS = {language: grammar["words"] for language, grammar in GRAMMAR.items()}
LONGEST_WITH_FILLER = {"en": 120, "zh": 36}  # characters; more would not fit into 32 tokens


def mention(scene: Scene, omit: float, rng: np.random.Generator) -> tuple[str, ...]:
    """The factors a caption speaks of, each left out with probability `omit`, so that a sentence
    remains.

    Without its first motion no second one is told, without its shape nothing of the second object.
    """
    present = [factor for factor, value in vars(scene).items() if value]
    draws = rng.random(len(present))
    kept = {factor for factor, draw in zip(present, draws, strict=True) if draw >= omit}
    if not kept & {"shape", "colour"}:
        kept.add("shape")
    kept -= set() if "motion" in kept else {"then"}
    kept -= set() if "shape2" in kept else {"colour2", "motion2"}
    return tuple(factor for factor in present if factor in kept)


def tell(
    scene: Scene, mentioned: tuple[str, ...], language: str, filler: float, rng
) -> tuple[str, Spans]:
    """Put a scene into words: the caption, and where in it each attribute word is.

    Args:
        scene: what is told.
        mentioned: the factors to tell, as `mention` chooses them.
        language: "en" or "zh".
        filler: probability of words around it that say nothing.
        rng: numpy generator; draws synonyms and order.
    """
    words = WORDS[choose("language", language, WORDS)]
    said = {name: [(_pick(words[name][getattr(scene, name)], rng), name)] for name in mentioned}
    naming = rng.random() < 0.4
    slots = said | {"np": _noun(said, "", language, rng), "vp": _verbs(said, naming, language, rng)}
    if "shape2" in said:
        noun, event = _noun(said, "2", language, rng), said.get("motion2", [])
        entry = scene.motion2 if event else "with"
        slots["second"] = _draw(entry, language, rng, np=noun, v2=event)
    framed = "background" in said and not naming and rng.random() < 0.4
    if "background" in said and not framed:
        slots["behind"] = _draw("behind", language, rng, **said)
    sentence = _draw("clause", language, rng, **slots)
    if framed:
        sentence = _draw("framed", language, rng, clause=sentence, **said)
    short = len(_join(sentence)[0]) <= LONGEST_WITH_FILLER[language]
    if naming:
        sentence = _draw("naming", language, rng, s=sentence)
    elif short and rng.random() < filler:
        sentence = _draw("filler", language, rng, s=sentence)
    return _join(sentence)


def _draw(entry: str, language: str, rng, **slots: Pieces) -> Pieces:
    """A random template of the entry, its slots filled; an absent slot is empty."""
    pieces: Pieces = []
    for literal, name, _, _ in Formatter().parse(_pick(GRAMMAR[language]["templates"][entry], rng)):
        pieces.append((literal, ""))
        pieces += slots.get(name, []) if name else []
    return pieces


def _noun(said: dict[str, Pieces], number: str, language: str, rng) -> Pieces:
    """The noun phrase of the first ("") or second ("2") object."""
    slots = {factor: said.get(factor + number, []) for factor in ("size", "colour", "shape")}
    if not slots["shape"]:
        slots["shape"] = [(_pick(GRAMMAR[language]["templates"]["thing"], rng), "")]
    template = _draw("noun", language, rng, **slots)
    if not slots["colour"]:
        template = [piece for piece in template if piece[0] not in (" coloured ", "的")]
    if language == "zh":
        return template
    return [("an " if _join(template)[0][0] in "aeiou" else "a ", ""), *template]


def _verbs(said: dict[str, Pieces], naming: bool, language: str, rng) -> Pieces:
    """The motion, or the two motions in one of the orders a language has for them."""
    if "motion" not in said:
        return []
    slots = {"v": said["motion"], "w": said.get("then", [])}
    if language == "en":
        for name, pieces in list(slots.items()):
            slots[f"{name}ing"] = [(_participle(text), factor) for text, factor in pieces]
            slots[name] = slots[f"{name}ing"] if naming else pieces
    return _draw("twice" if "then" in said else "once", language, rng, **slots)


def _participle(phrase: str) -> str:
    """ "goes to the left" -> "going to the left"; right for every verb of the table."""
    verb, *rest = phrase.split(" ")
    return " ".join([verb.removesuffix("s").removesuffix("e") + "ing", *rest])


def _join(pieces: Pieces) -> tuple[str, Spans]:
    """The text, with single spaces and none before a comma, and the place of every attribute word
    in it."""
    text, spans = "", []
    for piece, factor in pieces:
        if piece.startswith(","):
            text = text.rstrip(" ")
        if not text or text.endswith(" "):
            piece = piece.lstrip(" ")
        if factor:
            spans.append((len(text), len(text) + len(piece), factor))
        text += piece
    return text.strip(" "), spans


def _pick(options: list[str], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]
