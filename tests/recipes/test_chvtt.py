"""HMMC's way from CHVTT: what the pre-training recipes lead to is what fine-tuning and zero-shot
recipes start from."""

import pytest
import torch

from tvrkit import cli, files, recipes
from tvrkit.models.hmmc import EncoderSettings
from tvrkit.training import runs

AFTER = {"hmmc_pretrain_chvtt_en": ["msrvtt", "vatex_en"], "hmmc_pretrain_chvtt": ["vatex_zh"]}
PAIRS = [
    (before, after)
    for before, targets in AFTER.items()
    for target in targets
    for after in (f"hmmc_{target}_chvtt", f"hmmc_zeroshot_{target}")
]
TINY = ["backbone.name=tvrkit-tiny", "backbone.pretrained=null", "method.temporal_layers=1"]
SMALL = ["data.prepared=shapes-smoke", "data.max_frames=2", "data.max_words=16", "train.workers=0"]
SMALL += ["eval.bootstrap=20"]
SHORT = ["train.epochs=1", "train.batch_size=16"]
QUEUES = ["method.queue_size=32", "method.frame_queue_size=64", "method.projector_width=16"]


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_both_have_the_same_towers_language_and_frames(before, after):
    start, goal = recipes.load_recipe(before), recipes.load_recipe(after)
    assert goal.train.start_from == f"chvtt/{before}/seed0"
    assert goal.backbone == start.backbone
    assert goal.data.language == start.data.language
    for name in ("temporal_layers", "temporal_heads", "max_frames"):
        assert getattr(goal.method, name) == getattr(start.method, name)
    assert isinstance(goal.method, EncoderSettings)


@pytest.mark.slow
@pytest.mark.parametrize("before", AFTER)
def test_weights_go_from_the_one_to_the_other_by_the_commands_that_the_recipes_name(
    before, smoke_home, monkeypatch
):
    def train(recipe, *overrides):
        arguments = ["train", recipe, *TINY, *SMALL, *overrides, "--run", "chvtt"]
        monkeypatch.setattr("sys.argv", ["tvrkit", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        return runs.Run(files.run(f"chvtt/{recipe}/seed0"))

    first = train(before, *SHORT, *QUEUES).method().state_dict()
    target = AFTER[before][0]
    same = train(f"hmmc_zeroshot_{target}").method().state_dict()
    tuned = train(f"hmmc_{target}_chvtt", *SHORT, "train.lr=1.0e-3").method().state_dict()
    assert all(torch.equal(tensor, first[key]) for key, tensor in same.items())
    assert tuned.keys() == same.keys()
    assert not all(torch.equal(tensor, first[key]) for key, tensor in tuned.items())
    text = next(key for key in same if "token_embedding" in key)
    fresh = runs.build_method(recipes.load_recipe(f"hmmc_zeroshot_{target}", [*TINY, *SMALL]))
    assert not torch.equal(fresh.state_dict()[text], first[text])
