"""Is this the protocol it says it is? Counts, id hashes, overlaps and shared sources, against a
table."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from tvrkit import files

PROTOCOL_TABLE = files.ASSETS / "protocols.csv"
NAMED = 5  # ids named in a message


def set_hash(lines: Iterable[str]) -> str:
    """SHA-256 of the sorted distinct lines: the same for the same set of ids in any order."""
    return hashlib.sha256("\n".join(sorted(set(lines))).encode()).hexdigest()


def expected_counts() -> pd.DataFrame:
    """A row per protocol, language and split: list, the file that says which videos it has; videos,
    captions, ids_sha256 and source, empty where not known."""
    types = {"videos": "Int64", "captions": "Int64"}
    return pd.read_csv(PROTOCOL_TABLE, dtype=types, comment="#").fillna({"ids_sha256": ""})


def protocols(dataset: str) -> list[str]:
    """The protocols of a data set by full name; the first is its default."""
    names = expected_counts()["protocol"].unique()
    return [name for name in names if name.partition("/")[0] == dataset]


@dataclass(frozen=True)
class SplitReport:
    """What `check_splits` found.

    Attributes:
        protocol: full name.
        table: a row per split: videos, captions, repeated_captions (rows whose text the split had
            before), ids_sha256, expected_videos, expected_captions, expected_ids_sha256, source.
        shared_sources: test videos cut from a source that training has too; None where no file
            tells the sources, or one of the two splits was not read.
        notes: what the reader left out or mended.
        mismatches: what differs from the protocol, one line each. Results of such a run are not
            comparable.
    """

    protocol: str
    table: pd.DataFrame
    shared_sources: list[str] | None
    notes: list[str]
    mismatches: list[str]

    def __str__(self) -> str:
        shown = self.table.drop(columns="source")
        for column in ("ids_sha256", "expected_ids_sha256"):
            shown[column] = shown[column].str[:12]
        shared = "not known (it takes the clips' sources, train and test)"
        if self.shared_sources is not None:
            shared = str(len(self.shared_sources))
        lines = [
            f"{self.protocol}: {'PARTIAL, not comparable' if self.mismatches else 'as expected'}",
            shown.to_string(index=False, na_rep="-"),
            f"test videos that share their source with training: {shared}",
            *(f"mismatch: {line}" for line in self.mismatches),
            *(f"note: {line}" for line in self.notes),
            *(f"source of {row.split}: {row.source}" for row in self.table.itertuples()),
        ]
        return "\n".join(lines)


def check_splits(captions: pd.DataFrame, protocol: str, allow_partial: bool = False) -> SplitReport:
    """Compare the splits in `captions` with what their protocol should have; those not read are not
    checked.

    Args:
        captions: table of `load_annotations`, one language.
        protocol: full name, such as "msrvtt/1k-A".
        allow_partial: report a mismatch instead of raising it.

    Raises:
        ValueError: a count or an id hash differs, or splits overlap; says expected and found.
    """
    language = captions["language"].iloc[0]
    known = expected_counts().query("protocol == @protocol and language == @language")
    groups = captions.groupby("split", sort=False)
    counts = {
        "videos": groups["video_id"].nunique(),
        "captions": groups.size(),
        "repeated_captions": groups["caption"].agg(lambda texts: texts.duplicated().sum()),
        "ids_sha256": groups["video_id"].agg(set_hash),
    }
    expected = known.set_index("split")[["videos", "captions", "ids_sha256"]]
    table = pd.DataFrame(counts).join(expected.add_prefix("expected_"))
    table = table.join(known.set_index("split")["source"]).reset_index()
    table = table.fillna({"expected_ids_sha256": "", "source": "no expected numbers are known"})
    ids = {str(split): set(names) for split, names in groups["video_id"]}
    mismatches = [line for row in table.to_dict("records") for line in _differences(row)]
    for first, second in combinations(ids, 2):
        if both := sorted(ids[first] & ids[second]):
            listed = f"found {len(both)}: {', '.join(both[:NAMED])}"
            mismatches.append(f"{first} and {second}: expected no video in both, {listed}")
    if mismatches and not allow_partial:
        lines = "; ".join(mismatches)
        hint = "--allow-partial goes on and labels the run"
        raise ValueError(f"{protocol} {language}: {lines} ({hint})")
    shared, notes = _shared(ids, captions.attrs.get("sources")), captions.attrs.get("notes", [])
    return SplitReport(protocol, table, shared, list(notes), mismatches)


def _differences(row: dict) -> list[str]:
    lines = [
        f"{row['split']}: expected {row[f'expected_{what}']} {what}, found {row[what]}"
        for what in ("videos", "captions")
        if pd.notna(row[f"expected_{what}"]) and row[f"expected_{what}"] != row[what]
    ]
    wanted, actual = row["expected_ids_sha256"][:12], row["ids_sha256"][:12]
    if not lines and wanted not in ("", actual):
        lines.append(f"{row['split']}: expected the videos with id hash {wanted}, found {actual}")
    return lines


def _shared(ids: dict[str, set[str]], sources: dict[str, str] | None) -> list[str] | None:
    if sources is None or not {"train", "test"} <= ids.keys():
        return None
    trained = {sources[video] for video in ids["train"] if video in sources}
    return sorted(video for video in ids["test"] if sources.get(video) in trained)
