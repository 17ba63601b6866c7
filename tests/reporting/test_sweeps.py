"""Sweeps: what is run, what a failure and an interruption leave behind, and tables that say what
was measured."""

import json
import os
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.fakes import DATA
from tvrkit import cli, files
from tvrkit.evaluation import compare, statistics
from tvrkit.evaluation.ranks import metrics_of_directions
from tvrkit.recipes import to_dict
from tvrkit.reporting import sweeps, tables
from tvrkit.training import runs
from tvrkit.training.card import write_card

pytestmark = pytest.mark.slow

TINY = ["backbone.pretrained=null", "data.max_frames=2", "train.epochs=1", "eval.bootstrap=20"]
FILE = """
seeds: [0]
common: [data.prepared=shapes-smoke]
sweeps:
  parts:
    question: Which?
    recipe: clip4clip_shapes
    reference: a-b
    parts: {{a: [method.layers=1], b: [method.head=meanP]}}
  layers:
    question: How many?
    recipe: clip4clip_shapes
    reference: "4"
    key: method.layers
    values: [1, 4]
  broken:
    question: Who falls?
    recipe: clip4clip_shapes
    reference: good
    common: [{tiny}]
    variants: {{good: [], bad: [backbone.pretrained=nowhere.safetensors]}}
"""


@pytest.fixture
def recipes(monkeypatch, tmp_path):
    """A sweep file of three sweeps, beside the recipe and the profiles."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in ("clip4clip_shapes", "profiles"):
        (folder / f"{name}.yaml").write_text((files.RECIPES / f"{name}.yaml").read_text())
    (folder / "sweeps.yaml").write_text(FILE.format(tiny=", ".join(TINY)))
    monkeypatch.setattr(files, "RECIPES", folder)
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    sweeps.homes.cache_clear()
    yield folder
    sweeps.homes.cache_clear()


def write_run(task, ranks, seconds=10.0, counts=3, found=0):
    """A finished run folder with these text-to-video ranks of two captions a video; of the videos,
    the first `found` find their captions."""
    files.write_text(task.folder / "config.yaml", json.dumps(to_dict(task.config)))
    videos = np.arange(len(ranks)) // 2
    v2t = np.where(np.arange(videos[-1] + 1) < found, 1, 11)
    arrays = {"t2v": np.array(ranks), "v2t": v2t}
    ids = {"video_of_caption": videos, "family_of_video": np.unique(videos)}
    ids |= {"caption_ids": videos.astype(str), "video_ids": np.unique(videos).astype(str)}
    np.savez(task.folder / "ranks.npz", **ids, **arrays)
    metrics = metrics_of_directions(arrays) | {"split": "test", "language": "en", "videos": 9}
    metrics |= {"ties": "pessimistic", "complete": True, "missing": []}
    ends = {"t2v R@1 low": 0.0, "t2v R@1 high": 100.0, "v2t R@1 low": 0.0, "v2t R@1 high": 0.0}
    card = {"seed": task.seed, "train_seconds": seconds, "peak_memory_mb": 700, "torch_threads": 1}
    files.write_json(task.folder / "metrics.json", metrics | ends)
    card |= {"recipe": task.recipe, "selection": "last", "device": "CPU", "parameters": 9}
    write_card(task.folder, {**card, "data": {**DATA, "videos": counts}})


# What is run
#  ------------------------------------------------------------------------------------------------


def test_every_sweep_of_the_package_is_of_valid_settings():
    for name, one in sweeps.load_all().items():
        tasks = sweeps.plan(name, run="test")
        assert len(tasks) == len(one.overrides) * len(one.seeds)
        assert len({task.variant for task in tasks}) >= 2
        assert all(task.config.data.prepared.startswith("shapes-") for task in tasks)


def test_every_committed_run_of_a_sweep_is_read_and_of_its_variant(monkeypatch):
    monkeypatch.delenv("TVRKIT_HOME", raising=False)
    for name in sweeps.load_all():
        variants = sweeps.finished(name, "reference")
        assert set(variants) == set(sweeps.load(name).overrides), name
        assert all(
            len(seeds) >= min(2, len(sweeps.load(name).seeds)) for seeds in variants.values()
        )


def test_parts_are_combined_and_a_key_takes_each_value(recipes):
    parts = sweeps.load("parts").overrides
    assert list(parts) == ["a-b", "a", "b", "none"]
    assert parts["none"] == ["method.layers=1", "method.head=meanP"]
    assert sweeps.load("layers").overrides == {"1": ["method.layers=1"], "4": ["method.layers=4"]}


def test_equal_variants_of_two_sweeps_are_one_run(recipes):
    tasks = [task for name in ("parts", "layers") for task in sweeps.plan(name, run="test")]
    assert len({task.folder for task in tasks}) == 4  # "4" is "a-b", "1" is "b"
    assert sweeps.variant_run("test", "layers", "4") == "test/ablations/parts/a-b"
    assert len({json.dumps(to_dict(task.config)) for task in tasks}) == 4


def test_profile_overrides_win_over_the_sweeps_and_lose_to_the_variants(recipes):
    config = sweeps.plan("layers", run="test", profile="smoke", variants=["1"])[0].config
    assert (config.train.epochs, config.method.layers) == (2, 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "question: Which?",
            "questions: Which?",
            "sweep parts.questions: Unexpected keyword argument",
        ),
        (
            'reference: "4"',
            'reference: "5"',
            "unknown reference of sweep layers '5': expected one of 1, 4",
        ),
        ("values: [1, 4]", "values: [1, many]", "sweep layers.values.1"),
        (
            "key: method.layers",
            "key: method.layer",
            "sweep layers, variant 1: method.layer: Unexpected keyword",
        ),
    ],
)
def test_a_wrong_sweep_file_is_named(recipes, old, new, message):
    file = recipes / "sweeps.yaml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        sweeps.plan("layers", run="test")


def test_unknown_names_are_refused_with_the_choices(recipes):
    with pytest.raises(
        ValueError, match="unknown sweep 'part': expected one of broken, layers, parts"
    ):
        sweeps.plan("part", run="test")
    with pytest.raises(ValueError, match="unknown variant of layers '2': expected one of 1, 4"):
        sweeps.plan("layers", run="test", variants=["2"])


# What is left behind
#  ----------------------------------------------------------------------------------------


def test_one_failure_is_named_and_the_others_go_on(
    recipes, smoke_data, tmp_path, monkeypatch, capsys
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / smoke_data.name).symlink_to(smoke_data)
    monkeypatch.setattr(
        "sys.argv",
        ["tvrkit", "sweep", "broken", "--run", "test", "--jobs", "2", "--profile", "smoke"],
    )
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert any(line.startswith("failed: broken/bad seed 0: error: ") for line in errors)
    assert errors[-1] == "error: 1 of 2 runs failed: broken/bad seed 0"
    assert set(sweeps.finished("broken", "test")) == {"good"}
    monkeypatch.setattr(sweeps, "command", lambda task, _: pytest.fail(f"{task} was finished"))
    assert (
        sweeps.execute(sweeps.plan("broken", run="test", profile="smoke", variants=["good"])) == {}
    )


def test_interrupted_it_ends_its_processes_and_goes_on_when_called_again(
    recipes, tmp_path, monkeypatch
):
    monkeypatch.setattr(runs, "prepared", lambda config: None)
    started = []

    def sleep(task, device):
        path = tmp_path / f"{task.variant}.pid"
        script = (
            f"import os, time; open({str(path)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
        )
        return [sys.executable, "-c", script]

    def interrupted(futures):
        while len([path for path in tmp_path.glob("*.pid") if path.stat().st_size]) < 2:
            time.sleep(0.05)
        raise KeyboardInterrupt

    tasks = sweeps.plan("parts", run="test")
    monkeypatch.setattr(sweeps, "command", sleep)
    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "as_completed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweeps.execute(tasks, jobs=2)
    processes = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    assert len(processes) == 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)

    def train(task, device):
        write_run(task, [1, 2])
        started.append(task)
        return [sys.executable, "-c", ""]

    monkeypatch.setattr(sweeps, "command", train)
    assert sweeps.execute(tasks, jobs=2) == {}
    assert {task.folder for task in started} == {task.folder for task in tasks}
    assert sweeps.execute(tasks, jobs=2) == {}
    assert len(started) == len(tasks)


def test_what_is_finished_is_skipped_and_what_is_not_is_started(recipes, monkeypatch):
    monkeypatch.setattr(runs, "prepared", lambda config: None)
    tasks, started = sweeps.plan("parts", run="test"), []
    write_run(tasks[0], [1, 1])

    def fail(task, device):
        started.append(task.variant)
        return [sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(1)"]

    monkeypatch.setattr(sweeps, "command", fail)
    failed = sweeps.execute(tasks, jobs=3)
    assert sorted(started) == ["a", "b", "none"]
    assert failed == {f"parts/{name} seed 0": "why" for name in started}


# What the tables say
#  ----------------------------------------------------------------------------------------


def test_results_are_means_over_seeds_and_paired_with_the_reference(recipes):
    random = np.random.default_rng(0)
    ranks = {(v, seed): random.integers(1, 3, 40) for v in ("a-b", "a", "b") for seed in (0, 1)}
    for task in sweeps.plan("parts", run="test", seeds=[0, 1], variants=["a-b", "a", "b"]):
        write_run(task, ranks[task.variant, task.seed], seconds=10 + task.seed)
    done = sweeps.finished("parts", "test")
    assert list(done) == list(sweeps.shown("parts", "test").index) == ["a-b", "a", "b"]
    hits = {key: 100 * np.mean(of == 1) for key, of in ranks.items()}
    for variant, seeds in done.items():
        values, row = [hits[variant, 0], hits[variant, 1]], tables.summary([*seeds.values()])
        assert row["t2v R@1"] == pytest.approx(np.mean(values))
        assert row["t2v R@1 sd"] == pytest.approx(np.std(values, ddof=1))
        assert row["t2v R@1 low"] < np.mean(values) < row["t2v R@1 high"]
        assert row["seconds"] == 10.5
    tests = sweeps.tests("parts", "test").set_index("metric", append=True)
    assert set(tests.index.get_level_values(0)) == {"a", "b"}
    assert set(tests.index.get_level_values(1)) == {*compare.TESTED}
    row = tests.loc["a", "t2v R@1"]
    gains = [np.sum(ranks["a", s] == 1) - np.sum(ranks["a-b", s] == 1) for s in (0, 1)]
    assert row["effect"] == pytest.approx(np.mean(gains))
    by_video = (
        sum((ranks["a", s] == 1).astype(int) - (ranks["a-b", s] == 1) for s in (0, 1))
        .reshape(20, 2)
        .sum(1)
    )
    assert row["p_weights"] == statistics.sign_flip_test(by_video)
    for about in ("weights", "recipe"):  # adjusted over variants and metrics alike
        assert tests[f"holm_{about}"].tolist() == pytest.approx(
            statistics.holm(tests[f"p_{about}"]).tolist()
        )


def test_a_variant_is_judged_both_ways(recipes):
    """What hurts video to text alone is said to hurt: a queue of 512 once read "can't tell"."""
    for task in sweeps.plan("parts", run="test", seeds=[0, 1, 2], variants=["a-b", "a"]):
        write_run(task, [1, 2] * 20, found=20 if task.variant == "a-b" else 2)
    tests = sweeps.tests("parts", "test").set_index("metric")
    assert tests["recipe"].to_dict() == {
        "t2v R@1": "can't tell",
        "v2t R@1": "worse",
        "rsum": "worse",
    }
    shown = sweeps.shown("parts", "test").loc["a"]
    assert shown["recipe"] == "v2t R@1 worse, rsum worse"
    assert shown["t2v R@1, difference"] == "+0.0 [+0.0, +0.0]"


def test_a_large_difference_is_told_and_main_effects_find_its_part(recipes):
    good, poor = [1] * 60, [1] * 20 + [2] * 40
    for task in sweeps.plan("parts", run="test"):
        write_run(task, good if task.variant.startswith("a") else poor)
    told = sweeps.tests("parts", "test").query("metric == 't2v R@1'")["weights"]
    assert told.to_dict() == {"a": "can't tell", "b": "worse", "none": "worse"}
    parts = sweeps.main_effects("parts", "test").query("metric == 't2v R@1'")
    assert parts["weights"].to_dict() == {"a": "better", "b": "can't tell"}
    assert set(parts["recipe"]) == {"one seed"}
    assert parts["difference"]["a"] == pytest.approx(100 * 40 / 60)


def test_results_without_runs_are_empty_and_without_the_reference_untested(recipes):
    assert sweeps.finished("parts", "test") == {}
    assert sweeps.main_effects("parts", "test").empty
    write_run(sweeps.plan("parts", run="test", variants=["a"])[0], [1, 2])
    assert sweeps.tests("parts", "test").empty
    assert sweeps.shown("parts", "test")["t2v R@1"].tolist() == ["50.0"]


def test_runs_of_other_settings_or_other_data_are_refused(recipes):
    tasks = sweeps.plan("parts", run="test", variants=["a-b", "a"])
    write_run(tasks[0], [1, 2])
    write_run(tasks[1], [1, 2], counts=4)
    with pytest.raises(ValueError, match="was trained on other data than"):
        sweeps.shown("parts", "test")
    write_run(tasks[1], [1, 2])
    config = tasks[1].folder / "config.yaml"
    config.write_text(config.read_text().replace('"meanP"', '"seqTransf"'))
    write_card(config.parent, runs.Run(config.parent).card)
    with pytest.raises(ValueError, match=r"lacks method\.head=meanP: remove the folder"):
        sweeps.shown("parts", "test")


@pytest.mark.parametrize(
    "variants", [["a", "a-b"], ["a", "b"]]
)  # with the reference, and without it
def test_runs_that_differ_in_more_than_their_variants_are_refused(recipes, variants):
    first, other = sweeps.plan("parts", run="test", variants=variants)
    for task in (first, other):
        write_run(task, [1, 2])
    assert len(sweeps.shown("parts", "test")) == 2
    write_run(replace(other, overrides=[*other.overrides, "train.epochs=7"]), [1, 2])
    with pytest.raises(ValueError, match=r"seed0 differ in more than method\."):
        sweeps.shown("parts", "test")


def test_the_figure_shows_what_each_variant_gains_over_the_reference(recipes):
    for task in sweeps.plan("parts", run="test", variants=["a-b", "a", "b"]):
        write_run(task, ([1] * (3 + len(task.variant)) + [2] * 7)[:10])
    tests = sweeps.tests("parts", "test").query("metric == 't2v R@1'")
    figure = sweeps.figure("parts", "test")
    dots = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    dots = [point for point, *others in filter(None, dots) if not others]
    assert dots[:2] == [[-20, 0], [-20, 1]]
    assert tests["difference"].tolist() == [-20, -20]
    assert figure.get_suptitle() == sweeps.load("parts").question


def test_a_table_as_a_reader_sees_it(recipes):
    for task in sweeps.plan("layers", run="test"):
        write_run(task, [1, 2] * 5)
    shown = sweeps.shown("layers", "test")
    assert shown["t2v R@1"].tolist() == ["50.0", "50.0"]
    assert shown["rsum, difference"].tolist() == ["+0.0 [+0.0, +0.0]", ""]
    assert shown["weights"].tolist() == ["can't tell", ""]
    assert shown["recipe"].tolist() == ["one seed", ""]


@pytest.mark.parametrize("visible", [None, "5,7"])
def test_on_gpus_each_run_has_one_of_its_own(recipes, tmp_path, monkeypatch, visible, capfd):
    """Two GPUs, faked, and four runs: the two at a time are never on the same one."""
    monkeypatch.setattr(runs, "prepared", lambda config: None)
    monkeypatch.setattr(sweeps.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    script = (
        "import os, pathlib, sys, time; gpu = os.environ['CUDA_VISIBLE_DEVICES'];"
        f"place = pathlib.Path({str(tmp_path)!r}, 'gpu' + gpu); place.mkdir(); time.sleep(0.2);"
        "place.rmdir(); print(gpu, file=open(sys.argv[1], 'w'))"
    )
    logs = []

    def command(task, device):
        logs.append(tmp_path / f"{task.variant}.log")
        return [sys.executable, "-c", script, str(logs[-1])]

    monkeypatch.setattr(sweeps, "command", command)
    tasks = sweeps.plan("parts", run="test")
    assert sweeps.execute(tasks, jobs=2, device="cuda") == {}
    assert {log.read_text().strip() for log in logs} == set((visible or "0,1").split(","))
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("done: ")]
    assert len(said) == len(tasks)
