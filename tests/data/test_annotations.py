"""Annotation readers on real files, on every layout in small, and on hostile ones."""

import csv
import json
import pickle
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.layouts import SENTENCES, VIDEOS, put, put_msrvtt
from tvrkit.data.annotations import load_annotations, resolve
from tvrkit.data.records import read_ids
from tvrkit.data.splits import check_splits

SLOW = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def rows(table):
    return list(zip(table["split"], table["video_id"], table["caption"], strict=True))


# real files


def test_counts_of_real_files(realdata):
    folder = realdata / "annotations"
    found = {}
    for name, splits in {
        "msrvtt": ["test"],
        "didemo": ["val", "test"],
        "activitynet": None,
    }.items():
        captions = load_annotations(name, folder / name, splits=splits)
        report = check_splits(captions, captions.attrs["protocol"])
        assert not report.mismatches
        assert not any("in both" in line for line in report.mismatches)
        for row in report.table.itertuples():
            found[name, row.split] = (row.videos, row.captions, row.repeated_captions)
    assert found == {
        ("msrvtt", "test"): (1000, 1000, 5),
        ("didemo", "val"): (1065, 1065, 0),
        ("didemo", "test"): (1004, 1004, 0),
        ("activitynet", "train"): (10009, 10009, 0),
        ("activitynet", "test"): (4917, 4917, 0),
    }


def test_real_didemo_paragraphs_hold_the_listed_descriptions(realdata):
    root = realdata / "annotations" / "didemo"
    captions = load_annotations("didemo", root, splits=["val", "test"])
    for split, descriptions, other_names in (("val", 4109, 29), ("test", 3932, 33)):
        names = set(read_ids(root / f"{split}_list.txt"))
        listed = [
            row
            for row in json.loads((root / f"{split}_data.json").read_text())
            if row["video"] in names
        ]
        assert len(listed) == descriptions
        blanks = sum(len(row["description"].split()) for row in listed)
        assert (
            sum(len(text.split()) for text in captions[captions["split"] == split]["caption"])
            == blanks
        )
        assert any(
            note.startswith(f"{other_names} {split} names") for note in captions.attrs["notes"]
        )


def test_real_activitynet_notes(realdata):
    captions = load_annotations(
        "activitynet/val1-paragraph", realdata / "annotations" / "activitynet"
    )
    notes = captions.attrs["notes"]
    assert [note.partition(":")[0] for note in notes] == [
        "2 train segments that end before they start, taken from end to start, of",
        "15 listed train ids without captions, left out",
        "9 listed test ids without captions, left out",
    ]
    assert not captions["caption"].str.contains("  ").any()
    ids = read_ids(realdata / "annotations" / "activitynet" / "val_ids.json")
    test = captions[captions["split"] == "test"]["video_id"]
    assert list(test) == [video for video in ids if video in set(test)]


def test_real_activitynet_id_lists(realdata):
    folder = realdata / "annotations" / "activitynet"
    assert [len(read_ids(folder / f"{name}_ids.json")) for name in ("train", "val")] == [
        10024,
        4926,
    ]


def test_layouts_with_invented_content(realdata, tmp_path):
    for path in (realdata / "annotations").glob("*/SYNTHETIC_*"):
        shutil.copy(path, tmp_path / path.name.removeprefix("SYNTHETIC_"))
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}_list.txt").write_text(
            "sf2PPeXQrUA_000000_000010\nrIJPGdtdaHg_000006_000016\n"
        )
    assert len(load_annotations("lsmdc", tmp_path, splits=["train"])) == 3
    assert len(load_annotations("lsmdc", tmp_path, "last-sentence", splits=["train"])) == 2
    assert len(load_annotations("vatex", tmp_path, "hgr-en", splits=["test"])) == 20
    (tmp_path / "vatex_data.json").unlink()
    chinese = load_annotations("vatex", tmp_path, "hgr-zh", splits=["test"])
    assert set(chinese["language"]) == {"zh"}
    assert chinese["caption"].iloc[0] == "合成的中文描述0"
    chinese = load_annotations("chvtt", tmp_path)
    assert rows(chinese) == [
        ("train", "Video0001", "一只狗在草地上奔跑"),
        ("train", "Video0002", "教你做番茄炒蛋"),
        ("test", "Video0001", "狗奔跑"),
        ("test", "Video0002", "番茄炒蛋"),
    ]
    assert chinese["tags"].tolist() == ["狗 草地", "美食 家常菜", "", ""]
    assert "tags" not in load_annotations("chvtt", tmp_path, splits=["test"])


# every layout in small


@pytest.fixture
def msrvtt(tmp_path):
    return put_msrvtt(tmp_path)


def test_msrvtt_json(msrvtt):
    captions = load_annotations("msrvtt", msrvtt)
    assert rows(captions)[:2] == [
        ("train", "video0", "caption 0 of 0"),
        ("train", "video0", "caption 1 of 0"),
    ]
    assert rows(captions)[4:] == [("test", "video5", "a test"), ("test", "video4", "b test")]
    assert captions["caption_id"].tolist()[:2] == ["video0-en0", "video0-en1"]
    full = load_annotations("msrvtt", msrvtt, "full")
    assert full.groupby("split")["video_id"].nunique().to_dict() == {
        "train": 3,
        "val": 2,
        "test": 1,
    }


def test_msrvtt_jsonl(msrvtt):
    (msrvtt / "MSRVTT_data.json").unlink()
    (msrvtt / "MSRVTT_JSFUSION_test.csv").unlink()
    clips = [
        {"caption": row["caption"], "clip_name": row["video_id"], "sen_id": 0} for row in SENTENCES
    ]
    lines = "".join(json.dumps(clip) + "\n" for clip in clips)
    put(
        msrvtt,
        train__jsonl=lines,
        test__jsonl='{"caption": "x", "clip_name": "video5", "retrieval_key": "ret0"}\n',
    )
    captions = load_annotations("msrvtt/1k-A", msrvtt)
    assert [row[1] for row in rows(captions)] == ["video0", "video0", "video1", "video1", "video5"]


TOKENS = {
    "-a_b_1_2": [["a", "dog"], ["it", "runs"]],
    "c_3_4": [["a", "cat"]],
    "d_5_6": [["a", "cow"]],
}
MSVD_LISTS = {
    "train_list__txt": "-a_b_1_2\n",
    "val_list__txt": "c_3_4\n",
    "test_list__txt": "d_5_6\ne_7_8\n",
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_msvd_pickle_and_json_agree(tmp_path, protocol):
    put(tmp_path, raw_captions=b"", **MSVD_LISTS)
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(TOKENS, protocol))
    from_pickle = load_annotations("msvd", tmp_path)
    assert from_pickle.attrs["sources"]["-a_b_1_2"] == "-a_b"
    assert from_pickle.attrs["notes"] == ["1 listed test ids without captions, left out: e_7_8"]
    put(
        tmp_path,
        captions_msvd__json={
            video: [" ".join(t) for t in lists] for video, lists in TOKENS.items()
        },
    )
    assert load_annotations("msvd", tmp_path).equals(from_pickle)


def test_msvd_chinese(tmp_path):
    put(tmp_path, youtube_mapping__txt="-a_b_1_2 vid1\nc_3_4 vid2\nd_5_6 vid3\n", **MSVD_LISTS)
    lines = [
        "id,video_id,sentence",
        "0,vid1.mp4,一只狗",
        "1,vid3.mp4,一头牛",
        "2,vid2.mp4,一只猫",
        "3,vid9.mp4,无",
    ]
    (tmp_path / "MSVD-CN.csv").write_bytes("\r\n".join(lines).encode())
    captions = load_annotations("msvd", tmp_path, language="zh")
    assert rows(captions) == [
        ("train", "-a_b_1_2", "一只狗"),
        ("val", "c_3_4", "一只猫"),
        ("test", "d_5_6", "一头牛"),
    ]
    assert (
        "1 names of MSVD-CN.csv not in youtube_mapping.txt, left out: vid9"
        in captions.attrs["notes"]
    )


def moment(video, description, times=((0, 0),)):
    return {
        "video": video,
        "description": description,
        "times": [list(pair) for pair in times],
        "annotation_id": 1,
    }


@pytest.mark.parametrize("listed", ["b.mov\na.\n", "b\na\n"])
def test_didemo_paragraphs(tmp_path, listed):
    moments = [
        moment("a.", " one  two "),
        moment("b.mov", "x", [(3, 1)]),
        moment("a.", "three"),
        moment("c.avi", "y"),
    ]
    put(tmp_path, test_list__txt=listed, test_data__json=moments)
    captions = load_annotations("didemo", tmp_path, splits=["test"])
    assert rows(captions) == [("test", "b", "x"), ("test", "a", "one two three")]
    assert captions.attrs["notes"] == [
        "1 test segments that end before they start, taken from end to start, of: b.mov",
        "1 test names that are not listed, left out: c.avi",
    ]


def test_didemo_keeps_only_the_listed_ending(tmp_path):
    put(
        tmp_path,
        test_list__txt="a.mov\n",
        test_data__json=[moment("a.mov", "x"), moment("a.mp4", "y")],
    )
    assert rows(load_annotations("didemo", tmp_path, splits=["test"])) == [("test", "a", "x")]


def test_lsmdc_quotes_are_text_and_both_conventions(tmp_path):
    def line(clip, text):
        return "\t".join([clip, *["00.00.01.000"] * 4, text])

    first, second = "0001_A_Movie_00.00.01.000-00.00.02.000", "0002_B_00.00.01.000-00.00.02.000"
    lines = [
        line(first, 'He says "stop'),
        line(second, "A car."),
        line(first, 'She turns, "slowly".\u2028Then'),
    ]
    put(tmp_path, LSMDC16_annos_training__csv="\n".join(lines) + "\n")
    every = load_annotations("lsmdc", tmp_path, splits=["train"])
    assert [row[2] for row in rows(every)] == [
        'He says "stop',
        "A car.",
        'She turns, "slowly". Then',
    ]
    assert every.attrs["sources"] == {first: "0001_A_Movie", second: "0002_B"}
    last = load_annotations("lsmdc/last-sentence", tmp_path, splits=["train"])
    assert [row[1:] for row in rows(last)] == [
        (first, 'She turns, "slowly". Then'),
        (second, "A car."),
    ]
    put(tmp_path, LSMDC16_annos_training__csv=lines[0] + "\n" + "a\tb\n")
    with pytest.raises(
        ValueError, match=r"training.csv row 2: expected 6 tab-separated fields, got 2"
    ):
        load_annotations("lsmdc", tmp_path, splits=["train"])


def test_chvtt_queries(tmp_path):
    def query(text, *docs):
        videos = [{"docid": doc, "title": "t", "title_eng": "t", "duration": 3} for doc in docs]
        return (
            json.dumps(
                {"query": text, "query_eng": f"{text} en", "videolist": videos}, ensure_ascii=False
            )
            + "\n"
        )

    put(
        tmp_path,
        query_data_train_bilingual__json=query("狗", "1", "2"),
        query_data_val_bilingual__json=query("猫", "3", "4"),
    )
    captions = load_annotations("chvtt", tmp_path, "query", language="en")
    assert rows(captions) == [
        ("train", "Video1", "狗 en"),
        ("train", "Video2", "狗 en"),
        ("test", "Video3", "猫 en"),
    ]
    put(tmp_path, query_data_val_bilingual__json=query("猫"))
    with pytest.raises(ValueError, match=r"val_bilingual.json: at 0.videolist: .*at least 1 item"):
        load_annotations("chvtt", tmp_path, "query")


# names and messages


def test_names():
    assert (
        resolve("msrvtt")
        == resolve("msrvtt", "1k-A")
        == resolve("msrvtt/1k-A")
        == ("msrvtt", "msrvtt/1k-A")
    )
    assert resolve("lsmdc", "lsmdc") == resolve("lsmdc") == ("lsmdc", "lsmdc")
    with pytest.raises(
        ValueError, match="unknown data set 'nope': expected one of activitynet, chvtt"
    ):
        resolve("nope")
    with pytest.raises(
        ValueError, match="unknown protocol 'msrvtt/9k': expected one of msrvtt/1k-A, msrvtt/7k"
    ):
        resolve("msrvtt", "9k")


def test_messages(tmp_path, msrvtt):
    with pytest.raises(
        FileNotFoundError, match=r"didemo/paragraph: expected val_data.json in .*, found none"
    ):
        load_annotations("didemo", tmp_path, splits=["val"])
    with pytest.raises(
        FileNotFoundError,
        match=r"annotations of didemo: expected a folder at .*nowhere, found none",
    ):
        load_annotations("didemo", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unknown split 'dev': expected one of test, train"):
        load_annotations("msrvtt", msrvtt, splits=["dev"])
    with pytest.raises(ValueError, match="unknown language 'zh': expected one of en"):
        load_annotations("msrvtt", msrvtt, language="zh")
    put(msrvtt, **{"MSRVTT_train__9k__csv": "video_id\nvideo77\n"})
    with pytest.raises(ValueError, match="expected en captions in train, got none"):
        load_annotations("msrvtt", msrvtt)


# hostile files

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
IDS = (
    st.sampled_from(
        ["v_ok", "../x", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "a\nb", "\ud800"]
    )
    | st.text()
)


def read_or_refuse(name, root, **options):
    """Rows whose ids are file names inside a folder, or one ValueError; nothing else, and no new
    file."""
    before = sorted(path for path in root.rglob("*"))
    try:
        captions, refusal = load_annotations(name, root, **options), "none"
    except ValueError as error:
        captions, refusal = None, str(error)
    assert 0 < len(refusal) < 2000
    assert sorted(path for path in root.rglob("*")) == before
    if captions is not None:
        assert captions["caption_id"].is_unique
        folder = root / "target"
        for video in captions["video_id"]:
            assert (folder / f"{video}.mp4").resolve().parent == folder.resolve()
        captions["caption"].str.encode("utf-8")
    return captions


def mutate(draw, value):
    """The same JSON value with one part replaced, dropped or doubled."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        choice = draw(st.sampled_from(["drop", "inside", "rename"]))
        rest = {other: entry for other, entry in value.items() if other != key}
        if choice == "drop":
            return rest
        return rest | (
            {draw(IDS): value[key]} if choice == "rename" else {key: mutate(draw, value[key])}
        )
    if isinstance(value, list) and value and draw(st.booleans()):
        index = draw(st.integers(0, len(value) - 1))
        changed = value[index] if draw(st.booleans()) else mutate(draw, value[index])
        return [*value[:index], changed, *value[index + (0 if draw(st.booleans()) else 1) :]]
    return draw(VALUES | IDS)


ACTIVITYNET = {
    "v_a": {"duration": 9.5, "timestamps": [[0, 4], [5, 2.5]], "sentences": [" One.", " Two."]},
    "v_b": {"duration": 3, "timestamps": [[0, 3]], "sentences": ["Three."]},
}
VATEX = [
    {"videoID": "a_b_000001_000011", "enCap": ["x", "y"], "chCap": ["一"]},
    {"videoID": "c_1_2", "enCap": ["z"]},
]


@SLOW
@given(st.data())
def test_hostile_activitynet(tmp_path, data):
    events, ids = (
        mutate(data.draw, ACTIVITYNET),
        data.draw(st.just(["v_a", "v_b"]) | st.lists(IDS) | VALUES),
    )
    if isinstance(events, dict) and isinstance(ids, list):
        ids = [*ids, *events]
    put(tmp_path, train__json=json.dumps(events), train_ids__json=json.dumps(ids))
    read_or_refuse("activitynet", tmp_path, splits=["train"])


@SLOW
@given(st.data())
def test_hostile_msrvtt(tmp_path, data):
    whole = mutate(data.draw, {"videos": VIDEOS, "sentences": SENTENCES})
    put(tmp_path, MSRVTT_data__json=json.dumps(whole))
    read_or_refuse_or_missing(tmp_path)
    with (tmp_path / "MSRVTT_train.9k.csv").open(
        "w", newline="", encoding="utf-8", errors="replace"
    ) as file:
        csv.writer(file).writerows([["video_id"], *([video] for video in data.draw(st.lists(IDS)))])
    read_or_refuse("msrvtt", tmp_path, splits=["train"])


def read_or_refuse_or_missing(root):
    try:
        read_or_refuse("msrvtt", root, protocol="full")
    except FileNotFoundError as error:
        missing = str(error)
    else:
        missing = "none"
    assert missing == "none" or "expected MSRVTT_" in missing


@SLOW
@given(st.data())
def test_hostile_vatex_and_didemo(tmp_path, data):
    moments = [moment("a.mp4", "x"), moment("b.", "y")]
    put(
        tmp_path,
        train_list__txt="a_b_000001_000011\nc_1_2\n",
        test_list__txt="a.mp4\nb.\n../x.mov\n",
    )
    put(tmp_path, vatex_training_v1__0__json=json.dumps(mutate(data.draw, VATEX)))
    put(tmp_path, test_data__json=json.dumps(mutate(data.draw, moments)))
    read_or_refuse("vatex", tmp_path, splits=["train"])
    read_or_refuse("didemo", tmp_path, splits=["test"])


@SLOW
@given(st.binary(max_size=300), st.integers(0, 200), st.integers(0, 255))
def test_hostile_bytes(tmp_path, noise, position, byte):
    good = bytearray(pickle.dumps(TOKENS))
    good[position % len(good)] = byte
    put(tmp_path, **MSVD_LISTS)
    for content in (noise, bytes(good), bytes(good[:position])):
        (tmp_path / "raw-captions.pkl").write_bytes(content)
        read_or_refuse("msvd", tmp_path, splits=["train"])
    put(
        tmp_path,
        LSMDC16_annos_val__csv=noise,
        MSRVTT_JSFUSION_test__csv=b"video_id,sentence\n" + noise,
    )
    put(tmp_path, videoinfo_bilingual__json=noise)
    read_or_refuse("lsmdc", tmp_path, splits=["val"])
    read_or_refuse("msrvtt", tmp_path, splits=["test"])
    read_or_refuse("chvtt", tmp_path, splits=["train"])


@SLOW
@given(IDS, st.text())
def test_hostile_lsmdc_and_chvtt_rows(tmp_path, video, text):
    line = "\t".join([video, "0", "1", "0", "1", text])
    put(tmp_path, LSMDC16_annos_val__csv=line.encode("utf-8", "replace"))
    row = {
        "docid": video,
        "title": text,
        "title_eng": text,
        "tag": text,
        "tag_eng": text,
        "duration": 1,
    }
    put(tmp_path, videoinfo_bilingual__json=json.dumps(row))
    read_or_refuse("lsmdc", tmp_path, splits=["val"])
    read_or_refuse("chvtt", tmp_path, splits=["train"])


@pytest.mark.parametrize(
    "video", ["../x", "/etc/passwd", "..", "", "a/b", "a\\b", "a\0b", "x" * 1000, "\ud800"]
)
def test_path_like_ids_are_refused(tmp_path, video):
    events = {video: ACTIVITYNET["v_b"]}
    put(tmp_path, train__json=json.dumps(events), train_ids__json=json.dumps([video]))
    with pytest.raises(ValueError, match="unusable video id"):
        load_annotations("activitynet", tmp_path, splits=["train"])


def test_duplicate_ids_are_refused(tmp_path):
    put(
        tmp_path,
        vatex_training_v1__0__json=[VATEX[0], VATEX[0]],
        train_list__txt="a_b_000001_000011\n",
    )
    with pytest.raises(
        ValueError, match="expected each videoID once, got 'a_b_000001_000011' 2 times"
    ):
        load_annotations("vatex", tmp_path, splits=["train"])
    doc = (
        json.dumps({"docid": "1", "title": "t", "title_eng": "t", "tag": "t", "tag_eng": "t"})
        + "\n"
    )
    put(tmp_path, videoinfo_bilingual__json=doc * 2)
    with pytest.raises(ValueError, match="expected each docid once, got '1' 2 times"):
        load_annotations("chvtt", tmp_path, splits=["train"])
