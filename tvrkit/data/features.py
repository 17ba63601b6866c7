"""Features in place of frames and captions: a folder of safetensors shards, read row by row.

`SPLIT-videos-00000.safetensors` holds all stored frames of a thousand videos, and
`SPLIT-texts-...` each caption's sentence and then its words: "rows" (sum of counts, D) float, and
"ends" (N,) int64, where each video's or caption's rows end. `card.json` is written last.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor
from torch.utils.data import default_collate

from tvrkit import files
from tvrkit.data import records
from tvrkit.data.batch import VideoFeatures
from tvrkit.data.manifest import Split

CARD, AGAIN = "card.json", "make them again with `tvrkit embed`"
SHARD = 1000  # videos or captions a file


def content(split: Split) -> str:
    """Short hash of what rows stand for: videos, their numbers of frames, captions."""
    captions = split.captions[["caption_id", "video_id", "caption"]].to_numpy().tolist()
    whole = json.dumps([split.video_ids, split.frame_counts, captions])
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


def write_shards(folder: Path, name: str, items: Iterable[Tensor]) -> None:
    """Write (n, D) features, an item each, as `name`-00000.safetensors and on."""
    items, number = iter(items), 0
    while held := list(islice(items, SHARD)):
        ends = torch.tensor([len(item) for item in held]).cumsum(0)
        with files.replacing(_shard(folder, name, number)) as temporary:
            save_file({"rows": torch.cat(held), "ends": ends}, temporary)
        number += 1


def _shard(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}-{number:05d}.safetensors"


class Features:
    """The features of one split, as `tvrkit embed` wrote them.

    Args:
        folder: with its card.
        split: its name.

    Attributes:
        card: what they were made with.

    Raises:
        FileNotFoundError: no such folder, or it is half written.
        ValueError: the split is not in it.
    """

    def __init__(self, folder: Path | str, split: str):
        self.folder, self.split = Path(folder), split
        where = f"features {self.folder}"
        if not (self.folder / CARD).is_file():
            state = "is half written" if self.folder.is_dir() else "is not there"
            raise FileNotFoundError(f"{where}: the folder {state}: {AGAIN}")
        self.card = files.read_json(self.folder / CARD)
        splits = records.checked(self.card.get("splits"), dict[str, str], f"{where}: splits")
        files.expect(split in splits, where, f"split {split}", f"{', '.join(splits)}: {AGAIN}")

    def item(self, kind: str, row: int) -> Tensor:
        """(n, D) float: the frames of a video ("videos"), or a caption's sentence and words
        ("texts").

        Raises:
            ValueError: its shard is missing or damaged.
        """
        number, place = divmod(row, SHARD)
        path = _shard(self.folder, f"{self.split}-{kind}", number)
        try:
            file, ends = _opened(path, path.stat().st_mtime_ns)
            start = ends[place - 1] if place else 0
            return file.get_slice("rows")[start : ends[place]]
        except (OSError, SafetensorError, IndexError) as error:
            got = files.reason(error)
            raise ValueError(f"{path}: expected row {place}, got {got}: {AGAIN}") from None

    def texts(self, rows: Iterable[int], length: int) -> Tensor:
        """(B, 1 + length, D) float: sentence first, words padded with zeros."""
        return padded([self.item("texts", int(row)) for row in rows], 1 + length)[0]


def padded(items: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """(B, length, ...) and the mask (B, length) bool of items (n, ...), n at most `length`."""
    mask = torch.arange(length) < torch.tensor([len(item) for item in items])[:, None]
    missing = (item.new_zeros(length - len(item), *item.shape[1:]) for item in items)
    pairs = zip(items, missing, strict=True)
    # torch's own way to stack: in a loader's process, straight into the memory that it shares
    whole = default_collate([torch.cat([item, m]) if len(m) else item for item, m in pairs])
    return whole, mask


def pack(features: VideoFeatures) -> bytes:
    """A safetensors file of what a method scores videos by; half precision halves it."""
    named = {**vars(features), **features.extras}
    tensors = {key: t.contiguous() for key, t in named.items() if isinstance(t, Tensor)}
    return save({key: t.half() if t.is_floating_point() else t for key, t in tensors.items()})


def unpack(files: Sequence[bytes]) -> VideoFeatures:
    """The features of several `pack`ed files together, as they were but for half precision."""
    parts = [load(file) for file in files]
    named: dict[str, Any] = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    video, frames, mask = (named.pop(key, None) for key in ("video", "frames", "mask"))
    return VideoFeatures(video, frames, mask, named).float()


@lru_cache(maxsize=64)
def _opened(path: Path, version: int) -> tuple[Any, list[int]]:
    file = safe_open(path, "pt")
    return file, file.get_tensor("ends").tolist()
