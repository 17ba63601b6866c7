"""Recipes are read strictly, and every packaged one is readable."""

import dataclasses
import re
import subprocess
import sys

import pytest

from tvrkit import files, recipes


@pytest.mark.parametrize("recipe", recipes.recipe_names())
def test_every_packaged_recipe_builds_and_survives_the_round_trip(recipe):
    built = recipes.load_recipe(recipe)
    assert recipes.build(recipes.to_dict(built), recipe) == built


@pytest.mark.parametrize("profile", ["smoke", "quick", "reference", "full"])
def test_every_profile_names_recipes_that_exist(profile):
    loaded = recipes.load_profile(profile)
    for recipe in [*loaded.recipes, *loaded.inspect]:
        assert recipes.load_recipe(recipe, profile=profile).recipe == recipe
    assert set(loaded.inspect) <= set(loaded.recipes)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=1e-4", r"train\.lr: .*got '1e-4' \(YAML reads 1e-4 as text: write 1\.0e-4\)"),
        ("train.epoch=3", r"train\.epoch: .*known keys: epochs, batch_size"),
        ("train.epochs=2.5", r"train\.epochs: .*valid integer"),
        ("train.batch_size=0", r"train\.batch_size: .*greater than 0"),
        ("train.optimizer=sgd", r"train\.optimizer: .*'adamw' or 'bertadam'"),
        (
            "trainer.epochs=3",
            r"unknown section 'trainer': expected one of backbone, data, eval, method, train",
        ),
        ("method.name=xclip", r"unknown method 'xclip': expected one of .*clip4clip"),
        ("method.hed=meanP", r"method\.hed: "),
        ("eval.postprocess=[softmax]", r"eval\.postprocess\.0: .*'dsl'"),
        ("epochs=3", r"expected section\.key=value"),
        ("train.lr=[", r"override 'train\.lr=\[': expected YAML"),
        pytest.param("train.lr=" + "[" * 3000, r"override 'train\.lr=\[.*\.\.\..*'", id="deep"),
        ("data.prepared.x=1", r"prepared is a value, no section"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        recipes.load_recipe("clip4clip_shapes", [override])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


ALIASES = "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a0: &a0 [x]\n{ALIASES}", r"the alias \*a0: write the value out"),
        ("data: &d {prepared: *d}", r"the alias \*d"),
        ("data: {prepared: a, prepared: b}", r"a key twice among \['prepared'\]"),
        ("train: {lr: 1.0}\ntrain: {lr: 2.0}", r"a key twice among \['train'\]"),
        ("[" * 10**4, "expected YAML: maximum recursion"),
        ("data: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("data: !!timestamp x", "expected YAML"),
        ("data: !!int ''", "expected YAML"),
        (b"\xff\xfe", "expected UTF-8 text"),
        ("data: 3", "expected sections of keys, got {'data': 3}"),
        ("x", "expected sections of keys, got 'x'"),
    ],
)
def test_a_hostile_file_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"mine\.yaml: .*{message}") as caught:
        recipes.load_recipe(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["..yaml", ".hidden.yaml", "a b.yaml", "a\n.yaml"])
def test_a_recipe_is_named_as_a_folder_can_be(tmp_path, name):
    (tmp_path / name).write_bytes((files.RECIPES / "clip4clip_shapes.yaml").read_bytes())
    with pytest.raises(ValueError, match=r"recipe name .*: expected letters"):
        recipes.load_recipe(str(tmp_path / name))


def test_unknown_recipe_and_profile_list_the_choices():
    with pytest.raises(
        ValueError, match=r"unknown recipe 'clip4chip_shapes': expected one of .*clip4clip_shapes"
    ):
        recipes.load_recipe("clip4chip_shapes")
    with pytest.raises(
        ValueError, match=r"unknown profile 'fast': expected one of activitynet, .*quick, reference"
    ):
        recipes.load_recipe("clip4clip_shapes", profile="fast")


def test_own_overrides_win_over_the_profile():
    smoke = recipes.load_recipe("clip4clip_shapes", profile="smoke")
    own = recipes.load_recipe("clip4clip_shapes", ["train.epochs=7"], profile="smoke")
    assert own == dataclasses.replace(smoke, train=dataclasses.replace(smoke.train, epochs=7))


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipes.load_recipe("clip4clip_shapes").train.epochs = 3


def test_a_recipe_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"recipe .*none\.yaml: no such file"):
        recipes.load_recipe(str(tmp_path / "none.yaml"))


def test_a_method_of_ones_own_is_named_by_module_and_class():
    name = "examples.dmae_extended:ExtendedDMAE"
    built = recipes.load_recipe("dmae_shapes", [f"method.name={name}", "method.queue=8"])
    assert (built.method_name, built.method.queue) == (name, 8)
    assert recipes.build(recipes.to_dict(built), "dmae_shapes") == built


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.m:Mine", "no_such_package.m can't be imported: ModuleNotFoundError: No"),
        ("broken_method:Mine", "broken_method can't be imported: ZeroDivisionError: division"),
        ("tvrkit.models.dmae:DMEA", "expected a class DMEA in it, a subclass of .* got None"),
        ("tvrkit.settings:Config", "expected a class Config in it, a subclass of .* got <class"),
        ("tvrkit.models.method:Method", "with Settings, got <class"),
    ],
)
def test_what_is_no_method_is_one_clear_line(name, message, tmp_path, monkeypatch):
    (tmp_path / "broken_method.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"method {name}: .*{message}") as caught:
        recipes.load_recipe("dmae_shapes", [f"method.name={name}"])
    assert "\n" not in str(caught.value)


def test_names_and_profiles_load_nothing_heavy():
    code = "import sys; from tvrkit import recipes; recipes.recipe_names(); "
    code += "recipes.load_profile('smoke'); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


ZERO_SHOT = [name for name in recipes.recipe_names() if name.startswith("zeroshot_")]


@pytest.mark.parametrize("name", ZERO_SHOT)
def test_a_zero_shot_recipe_is_the_backbone_alone_on_data_that_others_train_on(name):
    """Its captions fit the text tower, and its target, where there is one, is a published row."""
    import open_clip

    from tvrkit.evaluation.compare import published_results
    from tvrkit.models.backbone import facts_by_tag

    made = recipes.load_recipe(name)
    assert (made.method_name, made.method.head, made.train.epochs) == ("clip4clip", "meanP", 0)
    architecture = open_clip.get_model_config(made.backbone.name)["text_cfg"]
    assert made.data.max_words <= architecture["context_length"]
    assert made.backbone.pretrained in facts_by_tag(made.backbone.name)
    trained = [recipes.load_recipe(other) for other in recipes.recipe_names()]
    assert made.data.prepared in {each.data.prepared for each in trained if each.train.epochs}
    header = (files.RECIPES / f"{name}.yaml").read_text(encoding="utf-8").partition("data:")[0]
    target = re.search(r"t2v (?:R@1 )?(\d+\.\d)", header)
    rows = published_results().query("method.str.contains('zero-shot') and direction == 't2v'")
    assert "none that we have read" in header or float(target[1]) in set(rows["R@1"])


def test_zero_shot_stands_for_five_backbones_on_each_data_set_and_for_one_that_reads_chinese():
    english = [name for name in ZERO_SHOT if recipes.load_recipe(name).data.language == "en"]
    kinds = {name.split("_")[-1] for name in english}
    assert (len(english), kinds) == (30, {"b32", "b16", "b", "l", "siglip2"})
    chinese = {"zeroshot_vatex_zh_siglip2", "zeroshot_chvtt_siglip2"}
    assert {*ZERO_SHOT} - {*english} == chinese


CARD = 80  # GB of one GPU
NEEDS = re.compile(r"^# One GPU needs about (\d+) GB \(`tvrkit train (\w+) --dry-run`\)\.$", re.M)
TRAINED = [
    name
    for name in recipes.recipe_names()
    if (made := recipes.load_recipe(name)).train.epochs and not made.data.prepared.startswith("sh")
]


def memory_matters(name):
    """What the memory of a training step depends on."""
    made = recipes.load_recipe(name)
    rows = min(made.train.chunk_size or made.train.batch_size, made.train.batch_size)
    shape = made.backbone.name, made.data.max_words, made.data.max_frames, rows
    return repr((made.method, *shape, made.train.precision, made.train.recompute))


def estimate(name):
    from tvrkit.training import bench

    return round(sum(bench.needs(recipes.load_recipe(name)).values()))


def said(name):
    return NEEDS.findall((files.RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


def test_every_trained_recipe_says_what_it_needs_and_fits_one_card():
    """What the headers say is counted by `python -m tests.recipes.test_recipes`; it needs the
    configuration of XLM-R, see `tvrkit.models.hub`."""
    known = {}
    for name in TRAINED:
        ((size, own),) = said(name)
        assert own == name
        assert int(size) <= CARD, name
        assert known.setdefault(memory_matters(name), size) == size, name
        assert recipes.load_recipe(name).train.precision == "bf16", name
    assert len(TRAINED) == 29


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip4clip_msrvtt_pe_b", "glscl_didemo"])  # those that need most
def test_what_a_header_says_is_the_estimate(name):
    assert said(name) == [(str(estimate(name)), name)]


if __name__ == "__main__":  # write what each recipe needs, or each that is named, into its header
    counted = {}
    for name in sys.argv[1:] or TRAINED:
        key = memory_matters(name)
        counted[key] = counted.get(key) or estimate(name)
        line = f"# One GPU needs about {counted[key]} GB (`tvrkit train {name} --dry-run`)."
        path = files.RECIPES / f"{name}.yaml"
        text = NEEDS.sub("", path.read_text(encoding="utf-8")).replace("\n\n", "\n")
        files.write_text(path, text.replace("\ndata:", f"\n{line}\ndata:", 1))
        print(name, counted[key], flush=True)
