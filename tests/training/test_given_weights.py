"""Weights in, numbers out: zero-shot, the kit's checkpoints, and authors' files through the
command."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from tests.fakes import DATA, split
from tests.models.families import make_tokenizer
from tests.parity import stored_batch
from tvrkit import cli, files
from tvrkit.data import loader
from tvrkit.evaluation import evaluate as scoring
from tvrkit.models import checkpoints, official
from tvrkit.reporting import pages
from tvrkit.training import runs
from tvrkit.training.given_weights import evaluate
from tvrkit.training.sharing import save_pretrained

pytestmark = pytest.mark.slow
SMALL = ["data.max_frames=2", "eval.bootstrap=20"]
OTHER = [*SMALL, "method.queries=3", "method.decoder_layers=1"]


@pytest.fixture(scope="module")
def zero_shot(smoke_home):
    return evaluate("clip4clip_meanp_shapes", profile="smoke", overrides=SMALL, run="zero")


@torch.no_grad()
def test_zero_shot_is_the_cosine_of_sentence_and_mean_frame(zero_shot):
    backbone, config, rows = zero_shot.method().backbone, zero_shot.config, zero_shot.split
    texts = next(iter(loader.text_loader(rows, config, backbone)))
    videos = next(iter(loader.video_loader(rows, config, backbone)))
    for video in (0, 7):
        frames = backbone.encode_frames(videos.frames[video : video + 1])[0]
        mean = torch.stack([frame / frame.norm() for frame in frames]).mean(0)
        for text in (0, 3):
            words = texts.tokens[text : text + 1], texts.token_mask[text : text + 1]
            score = normalize(backbone.encode_text(*words)[1][0], dim=0) @ normalize(mean, dim=0)
            assert zero_shot.evaluation.similarity[text, video] == pytest.approx(
                score.item(), abs=1e-5
            )


def test_a_zero_shot_run_is_an_ordinary_folder_and_stands_as_such_in_the_tables(zero_shot):
    assert zero_shot.card["selection"] == zero_shot.metrics["selection"] == "zero-shot"
    assert zero_shot.card["weights"] is None
    assert zero_shot.card["backbone"]["preprocessing"]["resize"] == "shortest"
    assert zero_shot.history["epoch"].tolist() == zero_shot.curve["epoch"].tolist() == [0]
    assert set(zero_shot.mined["epoch"]) == {0}
    row = zero_shot.curve.iloc[0]
    assert (row["split"], row["t2v R@1"]) == ("test", zero_shot.metrics["t2v R@1"])
    assert "clip4clip_meanp_shapes (zero-shot)" in pages.write_index("zero").read_text()
    again = evaluate("clip4clip_meanp_shapes", profile="smoke", overrides=SMALL, run="zero")
    assert again == zero_shot


def test_a_method_with_new_parts_is_called_untrained_and_seeds_tell_it_apart(zero_shot):
    small = [*SMALL, "method.temporal_layers=1", "backbone.pretrained=null"]
    first, second = (
        evaluate("hmmc_shapes", profile="smoke", overrides=small, run="un", seed=seed)
        for seed in (0, 1)
    )
    assert first.card["selection"] == "untrained"
    assert (first.evaluation.similarity != second.evaluation.similarity).any()


def test_random_weights_are_never_called_zero_shot(zero_shot):
    small = [*SMALL, "backbone.pretrained=null"]
    run = evaluate("clip4clip_meanp_shapes", profile="smoke", overrides=small, run="random")
    assert run.card["selection"] == "untrained"


def test_only_the_evaluated_split_is_needed(zero_shot, monkeypatch):
    manifest = zero_shot.manifest
    only = manifest.captions[manifest.captions["split"] == "test"]
    alone = type(manifest)(manifest.root, only, manifest.videos, manifest.card)
    monkeypatch.setattr(runs, "prepared", lambda config: alone)
    run = evaluate("clip4clip_meanp_shapes", profile="smoke", overrides=SMALL, run="test-only")
    np.testing.assert_array_equal(run.evaluation.similarity, zero_shot.evaluation.similarity)


@pytest.fixture(scope="module")
def trained(zero_shot):
    small = [*OTHER, "train.epochs=1"]
    return runs.ensure("glscl_shapes", profile="smoke", overrides=small, run="trained")


def test_a_checkpoint_of_the_kit_brings_its_settings_and_gives_its_numbers(trained):
    file = trained.folder / "checkpoint.safetensors"
    again = evaluate("glscl_shapes", file, profile="smoke", overrides=SMALL, run="again")
    np.testing.assert_array_equal(again.evaluation.similarity, trained.evaluation.similarity)
    assert again.config.method == trained.config.method
    assert again.card["selection"] == "as given"
    assert again.card["weights"] == {
        "file": "checkpoint.safetensors",
        "sha256": checkpoints.read_tensors(file)[1]["sha256"],
        "format": "tvrkit",
        "method": "glscl",
    }
    nowhere = [*SMALL, "backbone.pretrained=nowhere.bin"]  # the file has all weights there are
    alone = evaluate("glscl_shapes", file, profile="smoke", overrides=nowhere, run="alone")
    np.testing.assert_array_equal(alone.evaluation.similarity, trained.evaluation.similarity)
    given = save_pretrained(trained, files.home() / "given")
    own = evaluate("glscl_shapes", given, split="val", profile="smoke", overrides=SMALL, run="val")
    assert own.metrics["split"] == "val"
    assert own.card["weights"] == again.card["weights"]


def test_another_method_and_another_file_under_the_same_run_are_refused(trained, tmp_path):
    file = shutil.copy(trained.folder / "checkpoint.safetensors", tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match="expected weights of method hmmc, got glscl: choose a"):
        evaluate("hmmc_shapes", file, profile="smoke", overrides=SMALL, run="other")
    evaluate("glscl_shapes", file, profile="smoke", overrides=SMALL, run="mine")
    changed = evaluate("glscl_shapes", profile="smoke", overrides=OTHER, run="new")
    shutil.copy(changed.folder / "checkpoint.safetensors", file)
    with pytest.raises(ValueError, match=r"mine/glscl_shapes/seed0 is of other weights than"):
        evaluate("glscl_shapes", file, profile="smoke", overrides=SMALL, run="mine")
    with pytest.raises(FileNotFoundError, match=r"nowhere.pt: no such checkpoint"):
        evaluate("glscl_shapes", "nowhere.pt", profile="smoke", run="nowhere")


def test_a_module_that_a_checkpoint_names_is_not_imported(tmp_path, monkeypatch):
    """Whoever makes a file may say in it what he likes; the recipe says what is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    save_file({"a": torch.zeros(1)}, "evil.safetensors", {"method": "evil:X", "settings": "{}"})
    with pytest.raises(ValueError, match="expected weights of method glscl, got evil:X: choose a"):
        evaluate("glscl_shapes", "evil.safetensors", profile="smoke", run="evil")
    assert not (tmp_path / "ran").exists()


def test_more_frames_than_a_checkpoint_has_positions_for_leave_no_folder(zero_shot):
    small = ["data.max_frames=2", "method.max_frames=2", "method.temporal_layers=1"]
    given = evaluate("hmmc_shapes", profile="smoke", overrides=[*SMALL, *small], run="two")
    file, more = given.folder / "checkpoint.safetensors", [*SMALL, "data.max_frames=3"]
    with pytest.raises(ValueError, match="temporal transformer: expected at most 2 frames, got 3"):
        evaluate("hmmc_shapes", file, profile="smoke", overrides=more, run="three")
    assert not files.run("three").exists()


class Stored:
    """A data set of golden inputs: what `runs` asks of a manifest."""

    def __init__(self, count):
        self.captions = pd.DataFrame({"caption_id": [f"c{row}" for row in range(count)]})
        self.card, self.count = DATA, count

    def split(self, name, language):
        ids = [f"v{row}" for row in range(self.count)]
        store = SimpleNamespace(settings={}, read=lambda *_: np.zeros((1, 32, 40, 3), np.uint8))
        owner = np.arange(self.count)
        return split(name, self.captions, ids, owner, language=language, frames=store)


GOLDEN = {
    "glscl_full": ("glscl", "eval_sim", 1),
    "hmmc_full_english": ("hmmc", "eval_sim_top2", 100),
    "hmmc_full_chinese": ("hmmc", "eval_sim_top2", 100),
}


def towers(weights, folder):
    """open_clip's configuration of the towers of a released file, of the file's own sizes."""
    config = official.clip_config(weights)
    if official.BERT_WORDS in weights:
        loaded = official.load_official("hmmc", weights.state)
        loaded.backbone.clip.text.config.save_pretrained(folder)
        make_tokenizer(folder, None)
        named = json.loads((files.ASSETS / "chinese-roberta-wwm-ext-ViT-B-32.json").read_text())
        places = dict.fromkeys(("hf_model_name", "hf_tokenizer_name"), str(folder))
        config["text_cfg"] = named["text_cfg"] | places
    return config


@pytest.mark.parametrize("stem", GOLDEN)
def test_authors_files_through_the_command_give_the_recorded_scores(
    stem, golden, tmp_path, monkeypatch, capsys
):
    name, key, scale = GOLDEN[stem]
    shards = sorted(golden.glob(f"{stem}_ckpt-*.safetensors"))
    weights = official.Released(name, official.read(shards))
    torch.save(weights.state, tmp_path / "pytorch_model.bin.3")
    stored = load_file(golden / f"{stem}_io.safetensors")
    (tmp_path / f"{stem}.json").write_text(json.dumps(towers(weights, tmp_path / "text")))
    open_clip.add_model_config(tmp_path / f"{stem}.json")
    mask = stored.get("video_mask", torch.ones(stored["video"].shape[:2])).bool()
    batch = stored_batch(stored, mask)
    recipe, words = tmp_path / f"{name}_golden.yaml", batch.tokens.shape[1]
    recipe.write_text(
        f"data: {{prepared: golden, max_words: {words}}}\n"
        f"backbone: {{name: {stem}, pretrained: null}}\n"
        f"method: {{name: {name}}}\neval: {{bootstrap: 20}}\n"
    )
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    monkeypatch.setattr(runs, "prepared", lambda config: Stored(len(batch)))
    for side in ("video_loader", "text_loader"):
        monkeypatch.setattr(scoring, side, lambda *_: [batch])
    command = ["evaluate", recipe, "--checkpoint", tmp_path / "pytorch_model.bin.3", "--run", "g"]
    monkeypatch.setattr("sys.argv", ["tvrkit", *map(str, command)])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "weights: as given" in capsys.readouterr().out
    run = runs.Run(tmp_path / "reports" / "g" / recipe.stem / "seed0")
    np.testing.assert_allclose(
        scale * run.evaluation.similarity, stored[key], atol=scale * 1e-5, rtol=1e-4
    )
    assert run.config.method.fidelity == "released"
    assert run.card["weights"]["format"] == "released"
    again = scoring.evaluate(run.method(), Stored(len(batch)).split("test", "en"), run.config)
    np.testing.assert_allclose(again.similarity, run.evaluation.similarity, atol=1e-6)


def test_real_clips_with_random_weights_go_the_whole_way(realdata, tmp_path, monkeypatch, capsys):
    """From files to a score, by the commands alone; it says nothing about quality."""
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    videos, run = realdata / "videos", "real/zeroshot_msrvtt_b32/seed0"

    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["tvrkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        told = capsys.readouterr()
        assert not stopped.value.code, told.err
        return told.out

    own = ("own", videos / "videos.csv", "--videos", videos, "--out", tmp_path / "data" / "real")
    assert "test: 18 of 18 videos" in command("data", "prepare", *own)
    small = ("backbone.name=tvrkit-tiny", "backbone.pretrained=null", "eval.bootstrap=20")
    out = command("evaluate", "zeroshot_msrvtt_b32", "data.prepared=real", *small, "--run", "real")
    assert "test split, weights: untrained" in out
    clip = videos / "yoga.mp4"
    assert f"{clip}  " in command("score", "a woman is doing yoga", clip, "--run", run)
    command("report")
    assert "1 runs, every file as it was written" in command("report", "verify", tmp_path)
    assert "zeroshot_msrvtt_b32 (untrained)" in (tmp_path / "reports/real/index.html").read_text()
