"""A recipe from files to numbers: found again, refused when settings differ, resumed when cut
off."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.fakes import finished_run
from tvrkit import files
from tvrkit.evaluation.evaluate import evaluate
from tvrkit.models import checkpoints
from tvrkit.reporting import pages as report
from tvrkit.training import runs
from tvrkit.training.card import ARTEFACTS, GIVEN, OLD_FACTORS, write_card

pytestmark = pytest.mark.slow

OVERRIDES = ["backbone.pretrained=null", "data.max_frames=2", "train.epochs=2", "eval.bootstrap=50"]

SMALL = ["backbone.pretrained=null", "eval.bootstrap=20", "train.epochs=2", "train.workers=1"]


@pytest.fixture(scope="module")
def home(smoke_home):
    """A home of its own with one finished run."""
    return runs.ensure("clip4clip_shapes", profile="smoke", overrides=OVERRIDES, run="test")


def test_the_run_folder_has_everything_a_reader_needs(home):
    assert {path.name for path in home.folder.iterdir() if not path.name.startswith(".")} == {
        "config.yaml",
        "run.json",
        "train.log",
        "history.csv",
        "curve.csv",
        "metrics.json",
        "factors.csv.gz",
        "ranks.npz",
        "similarity.npz",
        "mined.csv.gz",
        "checkpoint.safetensors",
    }
    card = home.card
    assert card["seed"] == 0
    assert card["versions"]["torch"] == torch.__version__
    assert card["data"]["protocol"] == "shapes"
    assert card["data"]["split_hash"] == home.manifest.card["split_hash"]
    assert (card["selection"], card["ties"], card["postprocess"]) == (
        "last",
        "pessimistic",
        ["raw"],
    )
    assert str(files.home()) not in json.dumps(card)


def test_the_history_has_a_row_per_step_and_the_curve_one_per_epoch(home):
    videos = home.manifest.card["counts"]["train"]["videos"]
    assert len(home.history) == 2 * -(-videos // home.config.train.batch_size)
    assert home.history["loss"].notna().all()
    assert home.curve["epoch"].tolist() == [1, 2]
    assert set(home.curve["split"]) == {"val"}


def test_the_mined_pairs_of_each_epoch_are_those_that_beat_a_match(home):
    mined = home.mined
    assert set(mined["epoch"]) == {1, 2}
    last = evaluate(home.method(), home.manifest.split("val"), home.config)  # select is "last"
    own = last.similarity[np.arange(len(last.caption_ids)), last.video_of_caption]
    lower = [
        [
            min(own[row], max(own[last.video_of_caption == column]))
            for column in range(len(last.video_ids))
        ]
        for row in range(len(own))
    ]
    others = last.video_of_caption[:, None] != np.arange(len(last.video_ids))
    expected = (last.similarity > lower) & others
    of_last = mined[mined["epoch"] == 2]
    found = np.zeros_like(expected)
    found[of_last["row"], of_last["column"]] = True
    assert (found != expected).mean() < 1e-3  # scores repeat to rounding only
    excess = (last.similarity - np.array(lower))[of_last["row"], of_last["column"]]
    np.testing.assert_allclose(of_last["excess"], excess, atol=2e-5)


def test_the_checkpoint_gives_the_similarity_that_was_scored(home):
    again = evaluate(home.method(), home.split, home.config)
    assert abs(again.similarity - home.evaluation.similarity).max() < 1e-5
    assert again.metrics == home.evaluation.metrics


def test_a_finished_run_is_found_and_not_trained_again(home, monkeypatch):
    monkeypatch.setattr(runs, "Trainer", lambda *_: pytest.fail("trained again"))
    assert runs.ensure("clip4clip_shapes", profile="smoke", overrides=OVERRIDES, run="test") == home
    assert runs.find("test") == [home]


def test_a_run_without_its_weights_is_not_taken_for_whole(home):
    kept = home.folder / "similarity.npz"
    moved = kept.rename(home.folder / "elsewhere.npz")
    with pytest.raises(
        ValueError, match=r"seed0 is a finished run without similarity.npz.*choose another run name"
    ):
        runs.ensure("clip4clip_shapes", profile="smoke", overrides=OVERRIDES, run="test")
    moved.rename(kept)


@pytest.fixture
def copied(home, tmp_path):
    """A copy of the finished run, for damaging."""
    return runs.Run(shutil.copytree(home.folder, tmp_path / "clip4clip_shapes" / "seed0"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [*ARTEFACTS, "run.json"])
def test_a_flipped_bit_in_any_file_is_noticed_when_it_is_read(copied, name):
    assert copied.damage(every=True) == ""
    flip(copied.folder / name)
    again = runs.Run(copied.folder)
    assert name in again.damage(every=True)
    assert runs.check_all(copied.folder.parents[1]) == {again: again.damage(every=True)}
    read = {
        "config.yaml": lambda: again.config,
        "history.csv": lambda: again.history,
        "curve.csv": lambda: again.curve,
        "mined.csv.gz": lambda: again.mined,
        "metrics.json": lambda: again.metrics,
        "ranks.npz": lambda: again.ranks,
        "similarity.npz": lambda: again.evaluation,
        "checkpoint.safetensors": lambda: again.method(),
        "run.json": lambda: again.card,
    }
    if name in read:
        with pytest.raises(ValueError, match=rf"{name}: |damaged file"):
            read[name]()


def test_weights_of_another_run_are_not_believed_but_equal_ones_in_another_file_are(copied):
    path, method = copied.folder / "checkpoint.safetensors", copied.method()
    before = path.read_bytes()
    checkpoints.save(method, path)  # without the name of the recipe: other bytes
    assert path.read_bytes() != before
    assert copied.damage(every=True) == ""
    next(method.parameters()).data += 1
    checkpoints.save(method, path)
    assert copied.damage(every=True).startswith("checkpoint.safetensors: not as it was written")
    with pytest.raises(ValueError, match="has another SHA-256"):
        copied.method()


def test_scores_of_another_evaluation_are_refused(copied):
    np.savez(copied.folder / "similarity.npz", similarity=copied.evaluation.similarity[:-1])
    write_card(copied.folder, copied.card)
    with pytest.raises(ValueError, match=r"^similarity.npz: expected \(\d+, \d+\) scores, got"):
        _ = runs.Run(copied.folder).evaluation


def test_metrics_that_were_edited_with_their_hash_are_counted_again(copied):
    metrics = copied.metrics
    files.write_json(copied.folder / "metrics.json", metrics | {"t2v R@1": 99.0})
    write_card(copied.folder, copied.card)
    with pytest.raises(ValueError, match=r"t2v R@1 is 99.0, ranks.npz gives"):
        _ = runs.Run(copied.folder).metrics


def test_metrics_added_in_another_order_are_sound(copied):
    """Python 3.12 and later add more exactly than 3.11, with which the committed runs were made."""
    metrics = copied.metrics
    other = math.nextafter(metrics["rsum"], math.inf)
    files.write_json(copied.folder / "metrics.json", metrics | {"rsum": other})
    write_card(copied.folder, copied.card)
    assert runs.Run(copied.folder).metrics["rsum"] == other


@pytest.mark.parametrize("name", ["t2v R@1 low", "v2t MdR high", "rsum low"])
def test_intervals_that_were_edited_with_their_hash_are_drawn_again(copied, name):
    files.write_json(copied.folder / "metrics.json", copied.metrics | {name: 3.0})
    write_card(copied.folder, copied.card)
    assert runs.Run(copied.folder).damage(every=True) == ""  # who reads it does not draw again
    (damage,) = runs.check_all(copied.folder).values()
    assert damage.startswith(f"metrics.json: {name} is 3.0, ranks.npz gives ")


def test_ranks_that_unpack_to_more_than_any_data_set_needs_are_refused(copied, monkeypatch):
    bomb = {name: np.zeros(10**5) for name in copied.ranks}
    np.savez_compressed(copied.folder / "ranks.npz", **bomb)
    write_card(copied.folder, copied.card)
    monkeypatch.setattr(runs, "LARGEST", 10**6)
    assert "expected at most 1,000,000 bytes unpacked" in runs.Run(copied.folder).damage()


def test_a_damaged_run_is_not_taken_for_finished(home):
    path = home.folder / "ranks.npz"
    before = path.read_bytes()
    flip(path)
    with pytest.raises(ValueError, match=r"seed0 is damaged: ranks.npz: .*: choose another run"):
        runs.ensure("clip4clip_shapes", profile="smoke", overrides=OVERRIDES, run="test")
    path.write_bytes(before)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"seed": 0}', "\xff", "null", "[" * 10**5])
def test_a_run_card_of_anything_is_one_line(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    damage = runs.Run(tmp_path).damage()
    assert damage.startswith("run.json")
    assert "\n" not in damage


def test_other_settings_in_the_same_folder_are_refused_by_name(home):
    overrides = [*OVERRIDES, "train.lr=0.5"]
    with pytest.raises(
        ValueError, match=r"train\.lr is 0\.001 there, 0\.5 asked\. Choose another run name"
    ):
        runs.ensure("clip4clip_shapes", profile="smoke", overrides=overrides, run="test")


def test_other_settings_are_refused_for_another_seed_too(home):
    overrides = [*OVERRIDES, "train.lr=0.5"]
    with pytest.raises(ValueError, match=r"seed0 holds a run with other settings: train\.lr"):
        runs.ensure("clip4clip_shapes", profile="smoke", overrides=overrides, run="test", seed=1)


def test_seeds_may_start_from_weights_of_their_own_and_one_seed_from_no_others(home):
    begin = [*OVERRIDES, "train.epochs=0", "train.start_from=test/clip4clip_shapes/seed0"]
    where = {"profile": "smoke", "run": "given"}
    runs.ensure("clip4clip_shapes", overrides=begin, seed=0, **where)
    copied = files.run("copied") / "clip4clip_shapes/seed0"
    shutil.copytree(home.folder, copied)
    begin[-1] = "train.start_from=copied/clip4clip_shapes/seed0"
    assert runs.ensure("clip4clip_shapes", overrides=begin, seed=1, **where).seed == 1
    with pytest.raises(ValueError, match=r"train\.start_from is 'test/clip.*copied.* asked"):
        runs.ensure("clip4clip_shapes", overrides=begin, seed=0, **where)
    with pytest.raises(ValueError, match=r"train\.start_from is 'test/clip.*, None asked"):
        runs.ensure("clip4clip_shapes", overrides=begin[:-1], seed=2, **where)


def test_factor_counts_are_read_of_older_runs_too_and_of_no_other_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    run = finished_run("clip4clip_shapes")
    assert run.factors.empty
    folder, card = run.folder, run.card
    (folder / "factors.csv.gz").unlink()
    (folder / "factors.csv").write_text("factor,family,right,pairs\nsize,a,1,2\n")
    (folder / "factors.x").write_text((folder / "factors.csv").read_text())
    for name, rows in (("factors.csv", 1), ("factors.x", 0)):
        noted = card["artefacts"] | {name: files.sha256(folder / name)}
        del noted["factors.csv.gz"]
        changed = files.sealed(card | {"artefacts": noted})
        files.write_json(folder / "run.json", changed)
        assert len(runs.Run(folder).factors) == rows
    assert OLD_FACTORS in GIVEN


def test_a_compressed_table_is_unpacked_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    monkeypatch.setattr(runs, "LARGEST", 20)
    with pytest.raises(ValueError, match=r"factors\.csv\.gz: expected at most 20 characters"):
        _ = finished_run("clip4clip_shapes").factors


def test_a_wrong_split_is_refused_before_anything_is_trained(home):
    overrides = [*OVERRIDES, "eval.split=tset"]
    with pytest.raises(ValueError, match=r"unknown split 'tset': expected one of test, train, val"):
        runs.ensure("clip4clip_shapes", profile="smoke", overrides=overrides, run="split")


@pytest.mark.parametrize("name", ["", ".", "..", "/abs", "a/../b", "a//b", "a b"])
def test_a_run_name_cannot_lead_out_of_the_reports(name):
    with pytest.raises(ValueError, match="run name"):
        files.run(name)


def test_an_interrupted_run_is_not_found_and_continues_to_the_same_numbers(home, monkeypatch):
    scored = []

    def interrupted(*args, **options):
        scored.append(args)
        if len(scored) == 2:
            raise KeyboardInterrupt
        return evaluate(*args, **options)

    def ensure():
        return runs.ensure("clip4clip_shapes", profile="smoke", overrides=OVERRIDES, run="cut")

    monkeypatch.setattr(runs, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure()
    assert runs.find("cut") == []
    cut = files.run("cut/clip4clip_shapes/seed0")
    # killed when the last was scored
    pd.testing.assert_frame_equal(pd.read_csv(cut / "history.csv"), home.history)
    assert pd.read_csv(cut / "curve.csv")["epoch"].tolist() == [1]
    monkeypatch.setattr(runs, "evaluate", evaluate)
    again = ensure()
    assert (again.evaluation.similarity == home.evaluation.similarity).all()
    pd.testing.assert_frame_equal(again.history, home.history)
    pd.testing.assert_frame_equal(again.curve, home.curve)
    pd.testing.assert_frame_equal(again.mined, home.mined)
    assert not list(again.folder.glob("resume-*"))
    lines = (again.folder / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2].split(":")[0] for line in lines] == [
        "epoch 1/2",
        "resumed at epoch 2, step 1",
        "epoch 2/2",
    ]


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (["train.lr=fast"], {}, r"train\.lr"),
        (["train.lr=0.5"], {"run": "test", "seed": 1}, "other settings"),
        (["eval.split=tset"], {}, "unknown split 'tset'"),
        (["data.prepared=msrvtt"], {}, "no prepared data set"),
        (
            ["train.start_from=nowhere/at/seed0"],
            {},
            r"nowhere/at/seed0: no such checkpoint: expected RUN",
        ),
        ([], {"device": "gpu"}, "unknown device"),
        (["backbone.pretrained=/nowhere.pt"], {}, "nowhere"),
        (["backbone.name=nosuch"], {}, "nosuch"),
    ],
)
def test_a_refused_run_leaves_no_folder_behind(home, overrides, options, message):
    before = sorted(files.run("test").parent.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError), match=message):
        runs.ensure(
            "clip4clip_shapes",
            profile="smoke",
            overrides=[*OVERRIDES, *overrides],
            **{"run": "refused", **options},
        )
    assert sorted(files.run("test").parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("clip4clip_shapes", ["data.max_words=999"], "expected at most 64 tokens, got 999"),
        ("hmmc_shapes", ["method.max_frames=1"], "expected at most 1 frames, got 2"),
        ("hmmc_shapes", ["method.max_frames=1", "train.epochs=0"], "at most 1 frames, got 2"),
        ("dmae_shapes", ["method.max_frames=3"], "expected 3 query and 32 key tokens, got 2"),
    ],
)
def test_more_frames_or_words_than_positions_leave_no_folder(home, recipe, overrides, message):
    with pytest.raises(ValueError, match=message):
        runs.ensure(recipe, profile="smoke", overrides=[*OVERRIDES, *overrides], run="positions")
    assert not files.run("positions").exists()


def test_runs_are_found_by_recipe_and_number_of_the_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    for seed in (10, 2):
        made = finished_run("clip4clip_shapes", "many", seed)
    for name in ("seed2.old", "seedling"):
        shutil.copytree(made.folder, made.folder.with_name(name))
    made.folder.with_name("seed3").mkdir()  # not finished
    assert [run.folder.name for run in runs.find("many")] == ["seed2", "seed10"]


@pytest.mark.parametrize("ending", ["", "_zh"])
def test_pretraining_on_titles_and_tags_and_fine_tuning_from_it(home, ending):
    less = ["method.temporal_layers=1", "train.epochs=1"]
    sizes = ["method.queue_size=20", "method.frame_queue_size=50", "method.projector_width=16"]
    first = runs.ensure(
        f"hmmc_pretrain_shapes{ending}",
        profile="smoke",
        overrides=[*OVERRIDES, *less, *sizes],
        run="test/pre",
    )
    queues, steps = first.method().queues, len(first.history)
    for name, queue in queues.items():
        per_step = 16 if name in ("video", "title", "tag") else 16 * 2
        assert queue.pointer == steps * per_step % queue.keys.shape[1]
    assert not torch.equal(queues["tag"].keys, queues["title"].keys)
    assert {"fam", "vtm", "ftm", "mlm"} <= set(first.history.columns)
    assert first.metrics["t2v queries"] == len(first.split.captions)
    start = f"train.start_from=test/pre/{first.recipe}/seed0"
    frozen = ["train.lr=0.0", "train.clip_lr=0.0"]
    second = runs.ensure(
        f"hmmc_shapes{ending}",
        profile="smoke",
        overrides=[*OVERRIDES, *less, *frozen, start],
        run="test/fine",
    )
    np.testing.assert_allclose(second.evaluation.similarity, first.evaluation.similarity, atol=1e-5)


def test_selection_on_a_split_that_is_not_there_is_refused(home, monkeypatch):
    captions = home.manifest.captions
    without = captions[captions["split"] != "val"]
    monkeypatch.setattr(
        runs,
        "prepared",
        lambda config: type(home.manifest)(
            home.manifest.root, without, home.manifest.videos, home.manifest.card
        ),
    )
    with pytest.raises(ValueError, match=r"train\.select: shapes-smoke has no 'val': use 'last\'"):
        runs.ensure(
            "clip4clip_shapes",
            profile="smoke",
            overrides=[*OVERRIDES, "train.select=val"],
            run="select",
        )


def test_a_gpu_that_is_not_there_is_one_clear_line(home):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=r"device 'cuda' asked for, but torch .* sees no GPU"):
        runs.ensure(
            "clip4clip_shapes", profile="smoke", overrides=OVERRIDES, run="gpu", device="cuda"
        )
    with pytest.raises(ValueError, match=r"unknown device 'gpu': expected cpu, cuda or cuda:k"):
        runs.ensure(
            "clip4clip_shapes", profile="smoke", overrides=OVERRIDES, run="gpu", device="gpu"
        )


def test_an_unprepared_data_set_names_the_command(home):
    with pytest.raises(
        FileNotFoundError,
        match=r"no prepared data set .*see data/README\.md for the `tvrkit data prepare` command",
    ):
        runs.ensure("clip4clip_shapes", overrides=["data.prepared=msrvtt"], run="missing")


def test_pages_are_made_from_run_folders_alone(home):
    page, board = (
        report.write_index("test").read_text(encoding="utf-8"),
        report.write_leaderboard().read_text(),
    )
    recall = home.metrics["t2v R@1"]
    assert f">{recall:.1f}<" in page
    assert f"<td>{recall:.1f}</td>" in board
    assert str(files.home()) not in page + board


# --- what a new user meets ---


def readme_example() -> str:
    """The Python example of README.md."""
    readme = (files.PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    return next(
        part for part in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "runs" in part
    )


def test_the_readme_example_runs_as_a_script_as_it_is_printed(tmp_path):
    """On a fresh home, so that the data set is made too; without a `__main__` guard."""
    small = ", ".join(f'"{override}"' for override in SMALL)
    text, changes = re.subn(
        r"overrides=\[", f'profile="smoke", overrides=[{small}, ', readme_example()
    )
    assert changes == 1
    assert "__main__" not in text
    script = tmp_path / "mine.py"
    script.write_text(
        f"open('count', 'a').write('x')\n{text}\nprint(run.folder)\n", encoding="utf-8"
    )
    quiet = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    environment = quiet | {"TVRKIT_HOME": str(tmp_path), "PYTHONPATH": str(files.PACKAGE.parent)}
    ended = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    folder = Path(ended.stdout.strip().splitlines()[-1])
    assert (folder / "run.json").exists()
    assert (tmp_path / "count").read_text() == "x"  # no worker ran the script again
    lines = [line for line in re.split(r"[\r\n]", ended.stderr) if line.startswith("epoch ")]
    lasting = [line for line in lines if "left" in line and "loss" in line and "R@1" in line]
    assert len(lasting) == 2
    log = (folder / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in log] == [line.strip() for line in lasting]


def test_who_waits_for_a_lock_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "PATIENCE", 0.1)
    path, order = tmp_path / ".lock", []
    release = threading.Event()

    def hold():
        with runs.lock(path, "trains reports/mine"):
            order.append("first")
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    while not order:
        time.sleep(0.01)
    threading.Timer(0.5, release.set).start()
    with runs.lock(path, "trains reports/mine"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert capsys.readouterr().err == "waiting for another process that trains reports/mine\n"
    with runs.lock(path, "trains reports/mine"):
        assert capsys.readouterr().err == ""
