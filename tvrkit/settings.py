"""Recipes: frozen, strict configuration read from YAML.

A recipe is one claimed result. It is read strictly: an unknown key, a wrong type, or a string where
a number belongs is an error that names the key. A default lives here, or in a method's own
`Settings`, and nowhere else.
"""

import dataclasses
import difflib
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import pydantic
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from tvrkit.files import NAME, shown

LISTED = 40  # choices that a message names
T = TypeVar("T")
Share = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(ge=1)]  # of cosines
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]  # of a folder; leads nowhere else


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(cls: type[T]) -> type[T]:
    """The decorator of every settings class, the methods' included: frozen, strict about types, and
    each number finite; its range is that of its type."""
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    decorate: Any = dataclass(frozen=True, config=strict)
    return decorate(cls)


@settings
class DataConfig:
    """What is trained and tested on.

    Attributes:
        prepared: folder under `data/` that `tvrkit data prepare` wrote.
        language: of the captions, "en" or "zh".
        max_words: tokens per caption, SOT and EOT included.
        max_frames: frames per video.
        train_sampling: how frames are chosen in training: uniform, random, segment-random, head or
            tail.
        eval_sampling: the same for validation and test.
        captions: "one" random caption per video and epoch, "all" captions once per epoch, or
            "tagged": as "one", with the video's tags as a second text (HMMC pre-training; CHVTT and
            shapes have tags).
        features: folder of `tvrkit embed`, read in place of frames and captions, for a frozen
            backbone or for evaluation.
        keyword_masking: drop words of low TF-IDF from training captions (DMAE).
        augmentation: of training clips, see `tvrkit.data.augmentation`: "hmmc" (its pre-training;
            "hmmc-per-frame" as released), "randaugment" (GLSCL), or none.
    """

    prepared: Name
    language: Literal["en", "zh"] = "en"
    max_words: Annotated[int, Field(ge=2)] = 32
    max_frames: PositiveInt = 12
    train_sampling: str = "segment-random"
    eval_sampling: str = "uniform"
    captions: Literal["one", "all", "tagged"] = "one"
    features: str | None = None
    keyword_masking: bool = False
    augmentation: Literal[False, "hmmc", "hmmc-per-frame", "randaugment"] = False


@settings
class BackboneConfig:
    """Any open_clip model.

    Attributes:
        name: open_clip model name, or "tvrkit-tiny", the embedded model.
        pretrained: open_clip tag, path of a weights file, "tvrkit" for the embedded weights, or
            None for random ones.
        preprocessing: open_clip tag whose preprocessing the file at the path `pretrained` wants;
            None = what the model's tags agree on, or what `open_clip_config.json` beside it says.
    """

    name: str = "tvrkit-tiny"
    pretrained: str | None = "tvrkit"
    preprocessing: str | None = None


@settings
class TrainConfig:
    """How the method is optimised.

    Attributes:
        epochs: 0 = the weights are scored as they are.
        lr: learning rate of the parts the method adds.
        clip_lr: learning rate of the backbone.
        text_lr: learning rate of the backbone's text tower, `clip_lr` where None.
        warmup: share of all steps with a linearly rising rate; then cosine to zero.
        decay_all: weight decay on LayerNorm gains, logit scale and embeddings too, as the released
            codes do.
        max_logit_scale: the scale is clamped to it after each step.
        batch_size: of all processes together.
        chunk_size: rows that a process encodes at a time with the gradient replayed (large batches
            on one device); None = all.
        precision: "fp32", "tf32" (matrix products on a GPU), or "bf16" (the encoders; the rest as
            "tf32") where the device has it.
        recompute: "blocks" of both towers keep only their inputs for the backward pass, which takes
            a third more time (activation checkpointing); or nothing is computed twice.
        compile: a mode of `torch.compile` for the backbone; or none.
        freeze_backbone: both towers stay as they are, without dropout; heads and logit scale learn.
        workers: loader processes.
        save_every: steps after which the state is saved, to go on from after a kill; None = every
            three minutes.
        start_from: "RUN/RECIPE/seedK" of a finished run that holds all parts of this method, whose
            weights it starts from (HMMC from its pre-training), or a checkpoint file of the kit or
            of an author's released code; None = backbone as pre-trained, new parts as initialised.
        select: which epoch is kept: "last", best on "val", or best on "test" (optimistic, and
            labelled so).
    """

    epochs: NonNegativeInt = 5
    batch_size: PositiveInt = 128
    optimizer: Literal["adamw", "bertadam"] = "adamw"
    lr: NonNegativeFloat = 1.0e-4
    clip_lr: NonNegativeFloat = 1.0e-7
    text_lr: NonNegativeFloat | None = None
    weight_decay: NonNegativeFloat = 0.2
    decay_all: bool = False
    warmup: Share = 0.1
    max_grad_norm: PositiveFloat = 1.0
    max_logit_scale: Scale = 100.0
    chunk_size: PositiveInt | None = None
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    recompute: Literal[False, "blocks"] = False
    compile: Literal[False, "default", "reduce-overhead", "max-autotune"] = False
    freeze_backbone: bool = False
    workers: NonNegativeInt = 2
    save_every: PositiveInt | None = None
    start_from: str | None = None
    select: Literal["last", "val", "test"] = "last"


@settings
class EvalConfig:
    """How the method is scored.

    Attributes:
        split: the split that is reported.
        batch_size: rows encoded at a time.
        ties: rank of a tied match: "pessimistic", "optimistic" or "mean".
        postprocess: extra, separately named columns: "dsl", "qbnorm".
        qbnorm_t2v_beta, qbnorm_v2t_beta: inverse temperature of QB-Norm.
        qbnorm_t2v_theta, qbnorm_v2t_theta: training queries that make a candidate a hub by ranking
            it first.
        bootstrap: resamples behind each interval.
    """

    split: str = "test"
    batch_size: PositiveInt = 128
    ties: Literal["pessimistic", "optimistic", "mean"] = "pessimistic"
    postprocess: list[Literal["dsl", "qbnorm"]] = dataclasses.field(default_factory=list)
    qbnorm_t2v_beta: PositiveFloat = 20.0
    qbnorm_t2v_theta: PositiveInt = 1
    qbnorm_v2t_beta: PositiveFloat = 20.0
    qbnorm_v2t_theta: PositiveInt = 1
    bootstrap: PositiveInt = 2000


@settings
class Config:
    """One recipe, whole: see the classes of its parts. `method` is the method's own `Settings`."""

    recipe: str
    data: DataConfig
    backbone: BackboneConfig
    method_name: str
    method: Any
    train: TrainConfig
    eval: EvalConfig


@settings
class Profile:
    """What `tvrkit reproduce` runs.

    Attributes:
        notebooks: in the order in which they run.
        recipes: trained, evaluated and compared with each other; the first is the baseline.
        inspect: those of them whose hard negatives and attention are looked into.
        seeds: of each recipe.
        overrides: what makes the profile small or large, over every recipe.
        contrast: prepared data set on which accuracy by factor is counted; "" = the test split.
    """

    notebooks: list[str]
    recipes: list[str]
    inspect: list[str]
    seeds: list[NonNegativeInt]
    overrides: list[str] = dataclasses.field(default_factory=list)
    contrast: str = ""


SECTIONS = {
    "data": DataConfig,
    "backbone": BackboneConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
}


def choose(kind: str, name: Any, choices: Collection[str]) -> str:
    """`name`, if it is one of `choices`; else a ValueError that names the nearest and lists the
    first `LISTED`."""
    if name in choices:
        return name
    near, known = difflib.get_close_matches(str(name), choices, n=3), sorted(choices)
    expected = f"expected one of {', '.join(known[:LISTED]) or 'none'}"
    expected += f" and {len(known) - LISTED:,} more" if len(known) > LISTED else ""
    expected += f"; near it: {', '.join(near)}" if near else ""
    raise ValueError(f"unknown {kind} {shown(name)}: {expected}")


def parse(cls: type[T], values: dict, section: str) -> T:
    """A settings class from the keys of one section; its errors name section and key."""
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        lines = [_explain(problem, cls, section) for problem in error.errors()]
        raise ValueError("; ".join(lines)) from None


def _explain(problem: Any, cls: Any, section: str) -> str:
    key, hint = ".".join([section, *map(str, problem["loc"])]), ""
    if problem["type"] == "float_type":
        hint = " (YAML reads 1e-4 as text: write 1.0e-4)"
    elif problem["type"] == "unexpected_keyword_argument":
        hint = f"; known keys: {', '.join(field.name for field in dataclasses.fields(cls))}"
    return f"{key}: {problem['msg']}, got {shown(problem['input'])}{hint}"
