"""What of reports/ is committed: small, and all that the pages of the repository show."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 4 * 2**20  # bytes
RUN = {"config.yaml", "run.json", "metrics.json", "ranks.npz"}


@pytest.fixture(scope="module")
def tracked():
    """The tracked files under reports/."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "reports"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def test_the_committed_reports_are_small_and_no_pages(tracked):
    assert sum(file.stat().st_size for file in tracked) <= LIMIT
    assert {file.suffix for file in tracked} <= {
        ".md",
        ".json",
        ".npz",
        ".csv",
        ".gz",
        ".yaml",
        ".png",
    }


def test_every_committed_run_has_what_its_numbers_are_counted_from(tracked):
    folders = {file.parent for file in tracked if re.fullmatch(r"seed\d+", file.parent.name)}
    assert len(folders) >= 169
    for folder in folders:
        assert {file.name for file in tracked if file.parent == folder} >= RUN, folder


def test_every_figure_that_a_committed_page_shows_is_committed(tracked):
    pages = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"!\[[^\]]*\]\(([^)\s:]+)\)", text):
            target = (page.parent / link).resolve()
            assert target in tracked or "reports" not in target.parts, f"{page.name}: {link}"
            assert target.exists(), f"{page.name}: {link}"
