"""A run given away and taken: the same weights and numbers from its folder alone, and from a
stand-in of the hub."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from tests.fakes import finished_run
from tvrkit import cli, files
from tvrkit.models import checkpoints, hub
from tvrkit.models.backbone import create_backbone
from tvrkit.recipes import load_recipe, to_dict
from tvrkit.reporting import pages
from tvrkit.search.encoder import Encoder
from tvrkit.settings import BackboneConfig
from tvrkit.training import runs, sharing
from tvrkit.training.card import versions, write_card
from tvrkit.training.sharing import from_pretrained, push_to_hub, save_pretrained

RECIPE = "dmae_shapes"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def run(home):
    """A finished run with weights; its config names a file of pre-trained ones that nobody has."""
    own = create_backbone(BackboneConfig())
    torch.save(own.clip.state_dict(), home / "mine.bin")
    config = load_recipe(RECIPE, [f"backbone.pretrained={home / 'mine.bin'}"])
    method = runs.build_method(config)
    done = finished_run(RECIPE, seed=3)
    (done.folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    checkpoints.save(method, done.folder / "checkpoint.safetensors", config)
    facts = {"size": 64, "resize": "shortest", "interpolation": "bicubic", "mean": [0], "std": [1]}
    about = {"backbone": {"name": "tvrkit-tiny", "preprocessing": facts}, "git_commit": "c0ffee"}
    about |= {"versions": versions(), "eval_seconds": 1.0}
    write_card(done.folder, done.card | about)
    (home / "mine.bin").unlink()
    return runs.Run(done.folder)


def test_a_folder_alone_gives_the_method(run, home):
    out = save_pretrained(run, home / "given")
    shutil.rmtree(run.folder)
    assert "similarity.npz" not in {path.name for path in out.iterdir()}
    method, config = from_pretrained(out), runs.opened(out).config
    assert not method.training
    state = checkpoints.read_tensors(out / "checkpoint.safetensors")[0]
    assert all(state[key].equal(value) for key, value in method.state_dict().items())
    assert config == load_recipe(RECIPE, [f"backbone.pretrained={home / 'mine.bin'}"])
    assert method.backbone.preprocessing == create_backbone(BackboneConfig()).preprocessing
    assert Encoder(str(out)).config == config
    assert runs.start_file(str(out)) == out / "checkpoint.safetensors"


def test_another_preprocessing_than_the_first_tags_is_kept(home):
    """Without weights open_clip's facts of a model's first tag stand: the checkpoint's win."""
    facts = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}
    facts |= {"interpolation": "bilinear", "resize_mode": "squash"}
    config = load_recipe("clip4clip_shapes")
    method = runs.build_method(config, facts)
    checkpoints.save(method, home / "c.safetensors")
    again = runs.build_method(config, checkpoints.facts(home / "c.safetensors"))
    assert again.backbone.preprocessing == method.backbone.preprocessing
    assert again.backbone.preprocessing.resize == "squash"
    checkpoints.load(again, home / "c.safetensors")
    with pytest.raises(ValueError, match=r"expected weights of preprocessing .*shortest.*squash"):
        checkpoints.load(runs.build_method(config), home / "c.safetensors")


def test_the_model_card_has_the_numbers_that_were_measured(run, home):
    text = (save_pretrained(run, home / "given") / "README.md").read_text()
    for name in ("t2v R@1", "v2t R@5", "rsum"):
        low, high = (run.metrics[f"{name} {end}"] for end in ("low", "high"))
        assert f"{run.metrics[name]:.1f} [{low:.1f}, {high:.1f}]" in text
    data = ModelCard(text).data
    assert data.library_name == "tvrkit"
    assert data.tags == ["text-video-retrieval", "dmae"]
    assert len(re.findall(r"^\|.*\|$", text, re.MULTILINE)) == 4  # a head, its line, two ways
    assert run.card["artefacts"]["checkpoint.safetensors"] in text
    assert str(home) not in text
    assert "Not comparable" not in text


def test_a_partial_set_is_said_in_the_model_card(run, home):
    write_card(run.folder, run.card | {"data": run.card["data"] | {"partial": True}})
    text = (save_pretrained(runs.Run(run.folder), home / "g") / "README.md").read_text()
    assert (
        "Not comparable with published numbers: not the whole protocol, 0 videos missing." in text
    )


def test_runs_from_elsewhere_stand_in_the_tables(run, home):
    """Saved into reports/, or copied there."""
    out = save_pretrained(run, home / "given")
    finished_run("glscl_shapes")
    taken = save_pretrained(out, files.run(f"theirs/{RECIPE}/seed3"))
    shutil.copytree(run.folder, files.run(f"copied/{RECIPE}/seed3"))
    assert runs.Run(taken).metrics == run.metrics
    page = pages.write_leaderboard().read_text()
    for name in ("mine", "theirs", "copied"):
        assert f"{name}/index.html" in page
        assert RECIPE in pages.write_index(name).read_text()
    assert set(runs.check_all(home / "reports").values()) == {""}


@pytest.mark.parametrize("changed", ["metrics.json", "checkpoint.safetensors", "run.json"])
def test_what_was_changed_on_the_way_is_not_taken(run, home, changed):
    out = save_pretrained(run, home / "given")
    data = (out / changed).read_bytes()
    other = b"1" if data[-9:-8] == b"0" else b"0"  # a digit of a hash, in run.json
    (out / changed).write_bytes(data[:-9] + other + data[-8:])
    target = files.run(f"theirs/{RECIPE}/seed3")
    with pytest.raises(ValueError, match=re.escape(changed)):
        save_pretrained(out, target)
    assert not target.exists()
    shutil.copytree(out, target)
    assert changed in "".join(runs.check_all(home / "reports" / "theirs").values())
    if changed != "metrics.json":
        with pytest.raises(ValueError, match=re.escape(changed)):
            from_pretrained(out)


def test_a_recipe_that_leads_elsewhere_is_damage(run):
    write_card(run.folder, runs.Run(run.folder).card | {"recipe": "../../elsewhere"})
    assert "recipe name '../../elsewhere': expected letters" in runs.Run(run.folder).damage()


def test_there_and_back_by_a_stand_in_of_the_hub(run, home, monkeypatch):
    store = home / "store"

    def upload(*, repo_id, folder_path, allow_patterns):
        kept = shutil.ignore_patterns("*.pkl")
        shutil.copytree(folder_path, store / repo_id, ignore=kept)

    def download(name, *, allow_patterns, local_files_only):
        if local_files_only or not (store / name).exists():
            raise hub.EntryNotFoundError(name)
        found = home / "cache" / name
        shutil.copytree(store / name, found)
        for path in found.iterdir():
            if path.name not in allow_patterns:
                path.unlink()
        return str(found)

    monkeypatch.setattr(sharing, "create_repo", lambda name, exist_ok: f"https://hub/{name}")
    monkeypatch.setattr(sharing, "upload_folder", upload)
    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    out = save_pretrained(run, home / "given")
    assert push_to_hub(out, "me/dmae") == "https://hub/me/dmae"
    (store / "me/dmae" / "evil.py").write_text("1 / 0")
    again = runs.opened("me/dmae")
    assert {path.name for path in again.folder.iterdir()} == {path.name for path in out.iterdir()}
    assert again.metrics == run.metrics
    state = from_pretrained(out).state_dict()
    assert all(state[key].equal(value) for key, value in again.method().state_dict().items())


def test_a_refused_upload_is_one_line(home, monkeypatch):
    def refuse(*_, **__):
        raise OSError("401 Client Error\n\nno token")

    monkeypatch.setattr(sharing, "create_repo", refuse)
    with pytest.raises(RuntimeError, match=r"me/dmae: not uploaded .*: 401 Client Error no token"):
        push_to_hub(home, "me/dmae")


@pytest.mark.parametrize(
    "name", ["nobody/nothing", "a/b/seed0", "nowhere.pt", "reports/mine", "../nothing"]
)
def test_what_is_nowhere_is_one_line(home, name, monkeypatch, capsys):
    """Offline: what was expected, what came, what to do."""
    for command in (["evaluate", RECIPE, "--checkpoint", name], ["score", "a", "b", "--run", name]):
        (home / "b").write_bytes(b"")
        (home / "reports" / "mine").mkdir(parents=True, exist_ok=True)  # a folder, and no run
        monkeypatch.chdir(home)
        monkeypatch.setattr("sys.argv", ["tvrkit", *command])
        with pytest.raises(SystemExit, match="1"):
            cli.main()
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert said[0].startswith(f"error: {name}: no such checkpoint: expected RUN/RECIPE/seedK")
        assert ("`hf download nobody/nothing` where there is a network" in said[0]) == (
            name == "nobody/nothing"
        )


def test_a_run_without_weights_and_a_folder_that_holds_something_are_refused(run, home):
    (home / "full").mkdir()
    (home / "full" / "a").write_text("")
    with pytest.raises(FileExistsError, match="full: expected an empty folder, or none"):
        save_pretrained(run, home / "full")
    (run.folder / "checkpoint.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"checkpoint.safetensors: not in reports"):
        save_pretrained("mine/dmae_shapes/seed3", home / "given")
    assert not Path(home / "given").exists()


def test_commands_save_verify_and_trec(run, home, monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["tvrkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    out = home / "given"
    assert command("save", f"mine/{RECIPE}/seed3", out) == f"{out}\n"
    assert "2 runs, every file as it was written" in command("report", "verify", home)
    written = command("report", "trec", f"mine/{RECIPE}/seed3", "--out", home / "trec")
    assert written == f"{home / 'trec'}\n"
    assert len(list((home / "trec").iterdir())) == 6
