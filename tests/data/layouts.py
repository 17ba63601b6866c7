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


def put_profile(root: Path, profile: str) -> tuple[str, dict[str, list[str]]]:
    """The annotation files of a profile's data set in small, as its authors lay them out.

    Returns:
        The protocol's name for `prepare`, and the ids of each split, ready to be files of videos.
    """
    splits = {"train": 6, "val": 0 if profile in NO_VAL else 3, "test": 4}
    numbers = {
        split: range(10 * place, 10 * place + n) for place, (split, n) in enumerate(splits.items())
    }
    name, stem, write = LAYOUTS[profile]
    ids = {split: [stem.format(n) for n in row] for split, row in numbers.items() if row}
    write(root, ids)
    return name, ids


NO_VAL = ("msrvtt", "activitynet", "chvtt")
WORDS = ["a dog runs over the grass", "a man cooks an egg", "two women sing", "a red car stops"]


def _say(video: str) -> list[str]:
    return [f"{words} in clip {video}" for words in WORDS[:2]]


def _msrvtt(root, ids):
    every = [video for row in ids.values() for video in row]
    sentences = [{"caption": text, "video_id": v} for v in every for text in _say(v)]
    videos = [{"video_id": v, "split": "train", "url": f"https://y.t/watch?v={v}"} for v in every]
    put(root, MSRVTT_data__json={"videos": videos, "sentences": sentences})
    (root / "MSRVTT_train.9k.csv").write_text("\n".join(["video_id", *ids["train"]]))
    rows = [f"ret{n},{v},{WORDS[n]}" for n, v in enumerate(ids["test"])]
    (root / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(["key,video_id,sentence", *rows]))


def _lists(root, ids):
    for split, names in ids.items():
        (root / f"{split}_list.txt").write_text("\n".join(names))


def _msvd(root, ids):
    _lists(root, ids)
    put(root, captions_msvd__json={v: _say(v) for row in ids.values() for v in row})


def _didemo(root, ids):
    _lists(root, {split: [f"{v}.mp4" for v in names] for split, names in ids.items()})
    for split, names in ids.items():
        lines = [{"video": f"{v}.mp4", "description": text} for v in names for text in _say(v)]
        (root / f"{split}_data.json").write_text(json.dumps(lines))


def _activitynet(root, ids):
    for split, name, listed in (("train", "train", "train"), ("test", "val_1", "val")):
        events = {
            v: {"duration": 2.0, "timestamps": [[0, 1], [1, 2]], "sentences": _say(v)}
            for v in ids[split]
        }
        (root / f"{name}.json").write_text(json.dumps(events))
        (root / f"{listed}_ids.json").write_text(json.dumps(ids[split]))


def _lsmdc(root, ids):
    names = ("LSMDC16_annos_training", "LSMDC16_annos_val", "LSMDC16_challenge_1000_publictect")
    for name, row in zip(names, ids.values(), strict=True):
        lines = ["\t".join([v, "0", "1", "0", "1", _say(v)[0]]) for v in row]
        (root / f"{name}.csv").write_text("\n".join(lines))


def _vatex(root, ids):
    _lists(root, ids)
    chinese = ["一只狗在草地上跑", "一个人做饭"]
    every = [v for row in ids.values() for v in row]
    put(root, vatex_data__json={v: {"enCap": _say(v), "chCap": chinese} for v in every})


def _chvtt(root, ids):
    def told(docid):
        words = {"title": "一只狗在草地上跑", "title_eng": "a dog runs"}
        return {"docid": docid, **words, "tag": "狗 草地", "tag_eng": "dog grass", "duration": 2}

    docids = {split: [v.removeprefix("Video") for v in names] for split, names in ids.items()}
    videos = [told(docid) for docid in docids["train"]]
    queries = [
        {"query": "狗跑", "query_eng": "dog runs", "videolist": [told(docid)]}
        for docid in docids["test"]
    ]
    for name, rows in (("videoinfo", videos), ("query_data_val", queries)):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (root / f"{name}_bilingual.json").write_text("\n".join(lines), encoding="utf-8")


LAYOUTS = {  # profile: protocol, names of its videos, writer
    "msrvtt": ("msrvtt/1k-A", "video{}", _msrvtt),
    "msvd": ("msvd", "abc{}_1_10", _msvd),
    "didemo": ("didemo", "1234@N02_{}", _didemo),
    "activitynet": ("activitynet", "v_abc{}", _activitynet),
    "lsmdc": ("lsmdc", "0001_Film_{}.000", _lsmdc),
    "vatex_en": ("vatex/hgr-en", "abc{}_000000_000010", _vatex),
    "vatex_zh": ("vatex/hgr-zh", "abc{}_000000_000010", _vatex),
    "chvtt": ("chvtt", "Video00{}", _chvtt),
}
