"""What is here and works: devices, versions, weights, tagger, decoders, prepared data, speed."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from tvrkit import files
from tvrkit.data.decoders import decoder_versions
from tvrkit.data.manifest import Manifest
from tvrkit.data.text import LANGUAGES, Tagger
from tvrkit.models.backbone import TINY, create_backbone
from tvrkit.recipes import load_recipe
from tvrkit.settings import BackboneConfig
from tvrkit.training.bench import clips_per_second
from tvrkit.training.card import cpu_name, versions


def examine(seconds: float) -> Iterator[tuple[str, str]]:
    """Name and finding of each part, as it is found; a part that fails says why, and the others
    go on. The speed is measured for so many seconds."""
    gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    named = [*map(torch.cuda.get_device_name, gpus)] or ["no GPU that torch can see"]
    checks: dict[str, Callable[[], str]] = {
        "devices": lambda: "; ".join([f"cpu: {cpu_name()}", *named]),
        "versions": lambda: ", ".join(f"{name} {version}" for name, version in versions().items()),
        "weights": lambda: f"{create_backbone(BackboneConfig(TINY)).name} reads",
        "decoders": decoder_versions,
    }
    checks |= {f"tagger {language}": partial(_tagger, language) for language in LANGUAGES}
    for root in sorted((files.home() / "data").glob("*/card.json")):
        checks[f"data {root.parent.name}"] = partial(_store, root.parent.name)
    for place in [torch.device("cpu"), *gpus]:
        checks[f"speed on {place}"] = partial(_speed, place, seconds)
    for name, check in checks.items():
        try:
            yield name, check()
        except Exception as error:  # each part is to be heard
            yield name, f"FAILS: {error or type(error).__name__}"


def _tagger(language: str) -> str:
    tagger = Tagger(language)
    tagger.tag(["a red ball" if language == "en" else "红色的球"])
    return f"{tagger.name} {tagger.version}"


def _store(name: str) -> str:
    """A frame of the first and of the last video; `tvrkit data verify` reads all of them."""
    store = Manifest.open(files.data(name)).frames
    ids = store.video_ids()
    shapes = {store.read(video_id, [0]).shape[1:3] for video_id in (ids[0], ids[-1])}
    return f"{len(ids)} videos, first and last read: {shapes}"


def _speed(place: torch.device, seconds: float) -> str:
    """Training steps of the embedded CLIP4Clip recipe on random rows."""
    config = load_recipe("clip4clip_shapes", ["data.max_frames=8", "train.batch_size=16"])
    rate = clips_per_second(config, place, seconds)
    return f"{rate:.0f} clips a second in training ({config.recipe}, {seconds:.0f} s)"
