"""The split checker: what it expects, and what it says of real and of invented splits."""

from pathlib import Path

import pytest

from tests.data.layouts import put, put_msrvtt
from tvrkit.data.annotations import DATASETS, load_annotations
from tvrkit.data.records import read_ids
from tvrkit.data.splits import check_splits, expected_counts, set_hash


@pytest.fixture
def msrvtt(tmp_path):
    return put_msrvtt(tmp_path)


LISTS = [
    ("msrvtt/1k-A", "train", "msrvtt/MSRVTT_train.9k.csv", 9000),
    ("msrvtt/1k-A", "test", "msrvtt/MSRVTT_JSFUSION_test.csv", 1000),
    ("msrvtt/full", "train", "msrvtt/MSRVTT_train.full.csv", 6513),
    ("msrvtt/full", "val", "msrvtt/MSRVTT_val.full.csv", 497),
    ("msrvtt/full", "test", "msrvtt/MSRVTT_test.full.csv", 2990),
    ("didemo/paragraph", "train", "didemo/train_list.txt", 8392),
    ("vatex/hgr-en", "train", "vatex/train_list.txt", 25991),
    ("vatex/hgr-en", "val", "vatex/val_list.txt", 1500),
    ("vatex/hgr-zh", "test", "vatex/test_list.txt", 1500),
]


@pytest.mark.parametrize(("protocol", "split", "name", "count"), LISTS)
def test_real_lists_have_the_expected_count_and_hash(realdata, protocol, split, name, count):
    ids = read_ids(realdata / "annotations" / name)
    if name.startswith("didemo"):
        ids = [Path(video).stem if not video.endswith(".") else video[:-1] for video in ids]
    row = expected_counts().query("protocol == @protocol and split == @split").iloc[0]
    assert len(ids) == count == row["videos"]
    assert set_hash(ids) == row["ids_sha256"]


def test_every_data_set_has_its_protocols():
    table = expected_counts()
    assert {name.partition("/")[0] for name in table["protocol"]} == set(DATASETS)
    assert not table.duplicated(["protocol", "language", "split"]).any()
    assert table["source"].notna().all()
    for _, rows in table.groupby("protocol"):  # each language has all splits
        splits = [list(of_language["split"]) for _, of_language in rows.groupby("language")]
        assert all(names == splits[0] for names in splits)


def test_msrvtt_test_clips_that_share_their_source(msrvtt):
    captions = load_annotations("msrvtt", msrvtt, "1k-A")
    report = check_splits(captions, "msrvtt/1k-A", allow_partial=True)
    assert report.shared_sources == ["video4", "video5"]  # id0 and id1, as video0 and video1
    (msrvtt / "MSRVTT_data.json").unlink()
    captions = load_annotations("msrvtt", msrvtt, "1k-A", splits=["test"])
    assert check_splits(captions, "msrvtt/1k-A", allow_partial=True).shared_sources is None


def test_mismatches_say_expected_and_found(msrvtt):
    captions = load_annotations("msrvtt", msrvtt)
    with pytest.raises(
        ValueError,
        match="train: expected 9000 videos, found 2; train: expected 180000 captions, found 4",
    ):
        check_splits(captions, "msrvtt/1k-A")
    report = check_splits(captions, "msrvtt/1k-A", allow_partial=True)
    assert report.mismatches
    assert report.mismatches[2:] == [
        "test: expected 1000 videos, found 2",
        "test: expected 1000 captions, found 2",
    ]
    assert "PARTIAL, not comparable" in str(report)


def test_overlap_and_repeats(msrvtt):
    text = "video_id,sentence\nvideo5,same\nvideo1,same\n"
    captions = load_annotations("msrvtt", put(msrvtt, MSRVTT_JSFUSION_test__csv=text))
    report = check_splits(captions, "msrvtt/1k-A", allow_partial=True)
    assert "train and test: expected no video in both, found 1: video1" in report.mismatches
    assert "train and test: expected no video in both, found 1: video1" in report.mismatches
    assert report.table.set_index("split")["repeated_captions"].to_dict() == {"train": 0, "test": 1}


def test_other_videos_of_the_right_number(realdata):
    captions = load_annotations("msrvtt", realdata / "annotations" / "msrvtt", splits=["test"])
    captions.loc[0, "video_id"] = "video0"
    with pytest.raises(
        ValueError, match="test: expected the videos with id hash 49a09fb68f7e, found"
    ):
        check_splits(captions, "msrvtt/1k-A")


def test_unknown_numbers_are_said_to_be_unknown(tmp_path):
    line = "\t".join(["0001_A_00.00.01.000-00.00.02.000", *"0101", "x"])
    put(tmp_path, LSMDC16_annos_val__csv=line)
    captions = load_annotations("lsmdc/last-sentence", tmp_path, splits=["val"])
    report = check_splits(captions, "lsmdc/last-sentence")
    assert not report.mismatches
    assert "source of val: not known for this convention" in str(report)
