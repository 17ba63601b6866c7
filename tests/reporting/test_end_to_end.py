"""A real data set's profile by its one command: files in its layout, prepared, through the
notebooks, to the published targets. MSR-VTT's 01, 03 and 05 in `make test`; all five of all
layouts, some minutes:

TVRKIT_LAYOUTS=all python -m pytest tests/reporting/test_end_to_end.py
"""

import os
import re
import shutil
from dataclasses import replace

import pytest

from tests.conftest import BESIDE
from tests.data.layouts import LAYOUTS
from tests.reporting.test_notebooks import output, prepared
from tvrkit import cli, files
from tvrkit.data import prepare
from tvrkit.data.manifest import Manifest
from tvrkit.evaluation.compare import published_results
from tvrkit.recipes import load_profile, load_recipe
from tvrkit.reporting import notebooks
from tvrkit.training import runs

pytestmark = pytest.mark.slow

ALL = os.environ.get("TVRKIT_LAYOUTS") == "all"
PROFILES = LAYOUTS if ALL else ["msrvtt"]
TINY = ["backbone.name=tvrkit-tiny", "backbone.pretrained=tvrkit", "train.workers=0"]
TINY += ["train.batch_size=4", "train.precision=fp32", "eval.bootstrap=50"]
CLIPS = ("video9770.mp4", "mmaction2_test.avi", "video9771.mp4", "flipping_a_pancake.mkv")
NO_TRUTH = "no truth on record for this data set: "
WITHOUT_TRUTH = {"01_data_preparation": 2, "03_evaluation": 2, "05_attention_maps": 1}
VERDICT = re.compile(r": (reached|ours is (above|below)): the target is \w+ our interval; NOT COMP")
FEWER = """from dataclasses import replace
from tvrkit import recipes
whole = recipes.load_profile
recipes.load_profile = lambda name: replace(whole(name), recipes={0}, inspect={0}[:1])
"""  # before the first cell of each notebook


def two(profile, folder, monkeypatch):
    """The profile with one method and one backbone alone; here, and in the notebooks' kernels. And
    with fewer notebooks, see above."""
    settings = load_profile(profile)
    alone = [name for name in settings.recipes if name.startswith("zeroshot")]
    chosen = [settings.inspect[0], *alone[:1]]
    (folder / "fewer.py").write_text(FEWER.format(chosen))
    monkeypatch.setenv("PYTHONSTARTUP", str(folder / "fewer.py"))
    books = settings.notebooks if ALL else settings.notebooks[::2]
    fewer = replace(settings, recipes=chosen, inspect=chosen[:1], notebooks=books)
    monkeypatch.setattr(notebooks, "load_profile", lambda name: fewer)
    return chosen


@pytest.mark.parametrize("profile", PROFILES)
def test_from_files_to_the_published_targets(profile, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    (tmp_path / "reports").mkdir()
    shutil.copytree(files.PACKAGE.parent / "notebooks", tmp_path / "notebooks")
    videos = BESIDE / "realdata" / "videos"
    clips = [videos / name for name in CLIPS if videos.is_dir()]
    chosen = two(profile, tmp_path, monkeypatch)
    monkeypatch.setattr(prepare, "SHORT_SIDE", 64)  # what the tiny backbone sees, drawn sooner
    prepared(tmp_path, profile, clips, load_recipe(chosen[0]).data.max_frames)
    monkeypatch.setattr("sys.argv", ["tvrkit", "reproduce", "--profile", profile, *TINY])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    told = capsys.readouterr()
    assert not stopped.value.code, told.err

    root = files.run(profile)
    assert told.out.splitlines()[-1] == f"open {root / 'index.html'}"
    done = {run.recipe: run for run in runs.find(profile)}
    assert set(done) == set(chosen)
    assert {run.card["selection"] for run in done.values()} <= {"last", "zero-shot"}
    for row in published_results().to_dict("records"):
        for recipe in set(chosen) & set(row["recipes"].split()):
            said = f"{recipe}, {row['direction']} R@1: "
            (line,) = [line for line in told.out.splitlines() if line.startswith(said)]
            assert f", published {row['R@1']:.1f}, " in line
            assert VERDICT.search(line), line
            assert line in output(root / "03_evaluation.ipynb")
    complete = "no published counts" if profile == "chvtt" else "NOT COMPARABLE with published"
    assert complete in output(root / "01_data_preparation.ipynb")
    for notebook, times in WITHOUT_TRUTH.items():
        (found,) = [*root.rglob(f"{notebook}.ipynb")]
        assert output(found).count(NO_TRUTH) == times, notebook
    if not clips:
        pytest.skip("realdata is not at hand: made videos went all the way in their place")
    readers = Manifest.open(files.data(done[chosen[0]].config.data.prepared)).card["decoders"]
    assert {reader.partition(":")[0] for reader in readers} == {"decord", "pyav"}
