"""The caption grammar of the shapes data set: scenes told in English and Chinese.

A caption is put together from templates and word tables as pieces (text, factor), so that the place of every attribute
word in the finished text is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

import numpy as np

from tvrkit.config import choose
from tvrkit.data.shapes_render import Scene

Pieces = list[tuple[str, str]]  # text, and the factor it names or ""

WORDS = {
    "en": {
        "shape": {
            "circle": ("circle", "disc", "ball"),
            "square": ("square", "box"),
            "triangle": ("triangle", "wedge"),
            "star": ("star", "pentagram"),
            "cross": ("cross", "plus"),
            "heart": ("heart", "love heart"),
            "ring": ("ring", "hoop"),
            "moon": ("moon", "crescent"),
        },
        "colour": {
            "red": ("red", "crimson"),
            "orange": ("orange", "amber"),
            "yellow": ("yellow", "lemon"),
            "green": ("green", "emerald"),
            "cyan": ("cyan", "turquoise"),
            "blue": ("blue", "navy"),
            "purple": ("purple", "violet"),
            "white": ("white", "snowy"),
        },
        "size": {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")},
        "place": {
            "left": ("on the left", "at the left side"),
            "right": ("on the right", "at the right side"),
            "top": ("at the top", "up high"),
            "bottom": ("at the bottom", "down low"),
            "centre": ("in the centre", "in the middle"),
        },
        "motion": {
            "left": ("moves left", "goes to the left", "slides leftwards"),
            "right": ("moves right", "goes to the right", "slides rightwards"),
            "up": ("moves up", "rises", "goes upwards"),
            "down": ("moves down", "sinks", "goes downwards"),
            "orbit": ("circles around", "moves in a circle", "makes a loop"),
            "still": ("stays still", "rests", "keeps its place"),
            "shake": ("shakes", "trembles", "wiggles"),
            "bounce": ("bounces", "jumps up and down"),
            "grow": ("grows", "becomes bigger", "expands"),
            "shrink": ("shrinks", "becomes smaller", "contracts"),
        },
        "motion2": {
            "still": ("stands by", "waits"),
            "appears": ("appears", "shows up"),
            "vanishes": ("vanishes", "disappears"),
        },
        "background": {
            "plain": ("plain", "uniform"),
            "stripes": ("striped", "lined"),
            "checks": ("checked", "chequered"),
            "dots": ("dotted", "spotted"),
            "gradient": ("shaded", "graded"),
            "waves": ("wavy", "rippled"),
        },
    },
    "zh": {
        "shape": {
            "circle": ("圆形", "圆盘", "圆球"),
            "square": ("正方形", "方块"),
            "triangle": ("三角形", "三角"),
            "star": ("星形", "五角星"),
            "cross": ("十字", "加号"),
            "heart": ("心形", "爱心"),
            "ring": ("圆环", "圈环"),
            "moon": ("月牙", "弯月"),
        },
        "colour": {
            "red": ("红色", "鲜红"),
            "orange": ("橙色", "橘色"),
            "yellow": ("黄色", "柠檬黄"),
            "green": ("绿色", "翠绿"),
            "cyan": ("青色", "蓝绿色"),
            "blue": ("蓝色", "深蓝"),
            "purple": ("紫色", "紫罗兰色"),
            "white": ("白色", "雪白"),
        },
        "size": {"small": ("小", "小小", "微小"), "large": ("大", "巨大", "很大")},
        "place": {
            "left": ("在左边", "在左侧"),
            "right": ("在右边", "在右侧"),
            "top": ("在上方", "在顶部"),
            "bottom": ("在下方", "在底部"),
            "centre": ("在中间", "在中央"),
        },
        "motion": {
            "left": ("向左移动", "往左走"),
            "right": ("向右移动", "往右走"),
            "up": ("向上移动", "上升"),
            "down": ("向下移动", "下降"),
            "orbit": ("绕圈移动", "转圈"),
            "still": ("静止不动", "停着"),
            "shake": ("抖动", "摇晃"),
            "bounce": ("上下弹跳", "蹦跳"),
            "grow": ("变大", "膨胀"),
            "shrink": ("变小", "收缩"),
        },
        "motion2": {
            "still": ("等着", "停在旁边"),
            "appears": ("出现", "冒出来"),
            "vanishes": ("消失", "不见了"),
        },
        "background": {
            "plain": ("纯色", "单色"),
            "stripes": ("条纹", "横纹"),
            "checks": ("格子", "棋盘格"),
            "dots": ("圆点", "斑点"),
            "gradient": ("渐变", "由明到暗"),
            "waves": ("波浪", "波纹"),
        },
    },
}
for _words in WORDS.values():
    _words |= {"then": _words["motion"], "shape2": _words["shape"], "colour2": _words["colour"]}

# One choice is drawn from each entry. {v} and {w} are the first and second motion as the clause wants them
# ("moves" or, after "there is", "moving"), {ving} and {wing} always the participle.
TEMPLATES = {
    "en": {
        "noun": ("{size} {colour} {shape}", "{size} {colour} {shape}", "{size} {shape} coloured {colour}"),
        "thing": ("object", "thing"),
        "once": ("{v}",),
        "twice": (
            "{v} and then {w}",
            "first {v}, then {w}",
            "{v} before {wing}",
            "{w} after {ving}",
            "{v}, later {w}",
        ),
        "with": (" next to {np}", " beside {np}", " with {np} near it"),
        "still": (" while {np} {v2}", " as {np} {v2}"),
        "appears": (", then {np} {v2}", " before {np} {v2}", " until {np} {v2}"),
        "behind": (" on a {background} background", " against a {background} wall"),
        "clause": ("{np} {place} {vp}{second}{behind}", "{place} {np} {vp}{second}{behind}"),
        "framed": ("on a {background} background, {clause}", "in front of a {background} wall {clause}"),
        "filler": ("in this clip, {s}", "here {s}", "look, {s}", "{s}, as one can see"),
        "naming": ("there is {s}", "we can see {s}", "the video shows {s}", "a clip of {s}"),
    },
    "zh": {
        "noun": ("一个{size}{colour}的{shape}", "一个{colour}{size}{shape}", "一个{size}{colour}{shape}"),
        "thing": ("物体", "东西"),
        "once": ("{v}",),
        "twice": ("{v}，然后{w}", "先{v}，再{w}", "{v}之后{w}", "在{w}之前{v}"),
        "with": ("，旁边有{np}", "，附近有{np}"),
        "still": ("，同时{np}{v2}", "，而{np}{v2}"),
        "appears": ("，然后{np}{v2}", "，接着{np}{v2}"),
        "behind": ("，背景是{background}的", "，{background}背景"),
        "clause": ("{np}{place}{vp}{second}{behind}", "{place}{np}{vp}{second}{behind}"),
        "framed": ("{background}的背景前，{clause}", "背景是{background}的，{clause}"),
        "filler": ("视频里，{s}", "画面中{s}", "看，{s}", "{s}，就是这样"),
        "naming": ("我们可以看到{s}", "这段视频里有{s}", "镜头拍下了{s}"),
    },
}
for _templates in TEMPLATES.values():
    _templates["vanishes"] = _templates["appears"]
LONGEST_WITH_FILLER = {"en": 120, "zh": 36}  # characters; more would not fit into 32 tokens


@dataclass(frozen=True)
class Caption:
    """A caption and what it says.

    Attributes:
        text: the caption.
        language: "en" or "zh".
        mentioned: factors it names, in the order of `Scene`.
        spans: (start, end, factor) of every attribute word, in characters, end excluded.
    """

    text: str
    language: str
    mentioned: tuple[str, ...]
    spans: tuple[tuple[int, int, str], ...]


def mention(scene: Scene, omit: float, rng: np.random.Generator) -> tuple[str, ...]:
    """The factors a caption speaks of, each left out with probability `omit`, so that a sentence remains.

    Without its first motion no second one is told, without its shape nothing of the second object.
    """
    present = [factor for factor, value in vars(scene).items() if value]
    kept = {factor for factor, draw in zip(present, rng.random(len(present)), strict=True) if draw >= omit}
    if not kept & {"shape", "colour"}:
        kept.add("shape")
    kept -= set() if "motion" in kept else {"then"}
    kept -= set() if "shape2" in kept else {"colour2", "motion2"}
    return tuple(factor for factor in present if factor in kept)


def tell(scene: Scene, mentioned: tuple[str, ...], language: str, filler: float, rng) -> Caption:
    """Put a scene into words.

    Args:
        scene: what is told.
        mentioned: the factors to tell, as `mention` chooses them.
        language: "en" or "zh".
        filler: probability of words around it that say nothing.
        rng: numpy generator; draws synonyms and order.
    """
    words = WORDS[choose("language", language, WORDS)]
    said = {factor: [(_pick(words[factor][getattr(scene, factor)], rng), factor)] for factor in mentioned}
    naming = rng.random() < 0.4
    slots = {
        "np": _noun(said, "", language, rng),
        "place": said.get("place", []),
        "vp": _verbs(said, naming, language, rng),
        "second": _second(scene, said, language, rng),
    }
    framed = "background" in said and not naming and rng.random() < 0.4
    slots["behind"] = _draw("behind", language, rng, **said) if "background" in said and not framed else []
    sentence = _draw("clause", language, rng, **slots)
    if framed:
        sentence = _draw("framed", language, rng, clause=sentence, **said)
    short = len(_join(sentence)[0]) <= LONGEST_WITH_FILLER[language]
    if naming:
        sentence = _draw("naming", language, rng, s=sentence)
    elif short and rng.random() < filler:
        sentence = _draw("filler", language, rng, s=sentence)
    text, spans = _join(sentence)
    return Caption(text, language, mentioned, spans)


def _draw(entry: str, language: str, rng, **slots: Pieces) -> Pieces:
    """A random template of the entry, its slots filled; an absent slot is empty."""
    pieces: Pieces = []
    for literal, name, _, _ in Formatter().parse(_pick(TEMPLATES[language][entry], rng)):
        pieces.append((literal, ""))
        pieces += slots.get(name, []) if name else []
    return pieces


def _noun(said: dict[str, Pieces], number: str, language: str, rng) -> Pieces:
    """The noun phrase of the first ("") or second ("2") object."""
    slots = {factor: said.get(factor + number, []) for factor in ("size", "colour", "shape")}
    if not slots["shape"]:
        slots["shape"] = [(_pick(TEMPLATES[language]["thing"], rng), "")]
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
        slots |= {
            f"{name}ing": [(_participle(text), factor) for text, factor in slots[name]] for name in "vw"
        }
        if naming:
            slots |= {"v": slots["ving"], "w": slots["wing"]}
    return _draw("twice" if "then" in said else "once", language, rng, **slots)


def _second(scene: Scene, said: dict[str, Pieces], language: str, rng) -> Pieces:
    if "shape2" not in said:
        return []
    entry = scene.motion2 if "motion2" in said else "with"
    return _draw(entry, language, rng, np=_noun(said, "2", language, rng), v2=said.get("motion2", []))


def _participle(phrase: str) -> str:
    """ "goes to the left" -> "going to the left"; right for every verb of the table."""
    verb, *rest = phrase.split(" ")
    return " ".join([verb.removesuffix("s").removesuffix("e") + "ing", *rest])


def _join(pieces: Pieces) -> tuple[str, tuple[tuple[int, int, str], ...]]:
    """The text, with single spaces and none before a comma, and the place of every attribute word in it."""
    text, spans = "", []
    for piece, factor in pieces:
        if piece.startswith(","):
            text = text.rstrip(" ")
        if not text or text.endswith(" "):
            piece = piece.lstrip(" ")
        if factor:
            spans.append((len(text), len(text) + len(piece), factor))
        text += piece
    return text.strip(" "), tuple(spans)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]
