"""Annotation files in small, for the tests of their readers and of the split checker."""

import json
from pathlib import Path


def put(root: Path, **files) -> Path:
    """Write `name__ending=content` files: text, bytes, or a value as JSON."""
    for name, content in files.items():
        path = root / name.replace("__", ".")
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(
                content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
            )
    return root


SENTENCES = [
    {
        "caption": f"caption {number} of {video}",
        "video_id": f"video{video}",
        "sen_id": 2 * video + number,
    }
    for video in range(6)
    for number in range(2)
]
VIDEOS = [
    {
        "video_id": f"video{video}",
        "id": video,
        "split": split,
        "url": f"https://www.youtube.com/watch?v=id{video % 4}",
    }
    for video, split in enumerate(["train", "train", "train", "validate", "val", "test"])
]


def put_msrvtt(root: Path) -> Path:
    return put(
        root,
        MSRVTT_data__json={"info": {}, "videos": VIDEOS, "sentences": SENTENCES},
        **{"MSRVTT_train__9k__csv": "video_id\nvideo0\nvideo1\n"},
        MSRVTT_JSFUSION_test__csv="key,video_id,sentence\nret0,video5,a test\nret1,video4,b test\n",
    )
