"""What a run says, in sentences and tables made from its folder alone.

`python -m tvrkit.reporting.sentences` fills what stands between `<!-- reference: NAME -->` and
`<!-- end -->` in README.md, reports/README.md and the notebooks' openings from the committed run
reports/reference: a new run changes the sentences by itself.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

from tvrkit import files
from tvrkit.evaluation import compare, statistics
from tvrkit.evaluation.evaluate import AS_GIVEN
from tvrkit.evaluation.factors import per_factor_accuracy
from tvrkit.inspection import diagnostics
from tvrkit.reporting import claims, pages, signs, sweeps, tables, targets
from tvrkit.reporting.tables import by_recipe, interval, number, title
from tvrkit.training.card import read_diagnostics
from tvrkit.training.runs import Run, find

REFERENCE = "reference"
CONTRAST = "contrast"  # folder in a run's
HARD = ["mined pairs that are one factor apart (%)", "pairs one factor apart that are mined (%)"]
HARD += ["random pairs that are one factor apart (%)"]
FALSE = [f"{kind} among the mined (%)" for kind in ("false negatives", "near-duplicate captions")]
FALSE += ["random pairs that are near-duplicate caption (%)"]  # perhaps hard ones
WAYS = {"t2v": "text to video", "v2t": "video to text"}
WIDE = 5  # points to either side
MARK = re.compile(r"(<!-- reference: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def results(run: str) -> str:
    """The table of a run's methods between chance and ceiling, accuracy by factor, and what can be
    told: Markdown."""
    recipes = by_recipe(find(run))
    first = next(iter(recipes.values()))[0]
    alone = [each for each in find(run) if each.card["selection"] == "zero-shot"]
    named = {title(recipe): seeds for recipe, seeds in recipes.items()}
    named |= {"backbone alone, not trained on videos": alone} if alone else {}
    table = pd.DataFrame({name: _accuracy(seeds) for name, seeds in named.items()}).T
    known = [number(first.metrics[f"{way} R@1 ceiling"]) for way in WAYS]
    table.loc["chance"] = [number(100 / first.metrics["videos"])] * 2 + [pages.ABSENT]
    table.loc["ceiling: a perfect reader, who guesses where several fit"] = [*known, pages.ABSENT]
    families = on_families(run, recipes)
    made = [table.rename_axis("test split, raw scores"), factors(families)]
    parts = [pages.as_markdown(table.reset_index()) for table in made if len(table)]
    said = _blind(families), _verdicts(recipes), signs.dead(recipes), control(run)
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in said)])


def _accuracy(seeds: Sequence[Run]) -> dict[str, str]:
    """Cells of R@1 both ways and rsum."""
    cells = tables.cells(tables.summary(seeds))
    accuracy = {
        f"{WAYS[way]}, R@1": f"{cells[f'{way} R@1']} {cells[f'{way} 95 %']}" for way in WAYS
    }
    return accuracy | {"rsum": cells["rsum"]}


def on_families(run: str, recipes: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """What accuracy by factor is counted on: the same weights on the contrast set, where notebook
    03 has scored them on it."""
    apart = by_recipe(find(f"{run}/{CONTRAST}"), given=True)
    whole = all(len(apart.get(recipe, ())) == len(seeds) for recipe, seeds in recipes.items())
    return {recipe: apart[recipe] for recipe in recipes} if whole else recipes


def factors(recipes: dict[str, list[Run]]) -> pd.DataFrame:
    """Accuracy by swapped factor (%), a row per method, as text with 95 % intervals; empty where a
    run did not record it."""
    rows = {
        title(recipe): {
            row.factor: f"{row.accuracy:.0f} {interval(row.low, row.high, 0)}"
            for row in per_factor_accuracy(seeds).itertuples()
        }
        for recipe, seeds in recipes.items()
        if not any(seed.factors.empty for seed in seeds)
    }
    data = "; ".join(sorted({claims.on_data(seed) for each in recipes.values() for seed in each}))
    return pd.DataFrame(rows).T.rename_axis(f"{data}: own video above the one that differs in, %")


def _verdicts(recipes: dict[str, list[Run]]) -> str:
    """What can be told of the differences between recipes, and of their weights."""
    pairs, fewest = compare.pairwise(recipes), min(map(len, recipes.values()))
    seeds = f"{fewest} seeds" if fewest > 1 else "one seed: not known"
    adjusted = f"all {len(pairs)} comparisons of {', '.join(compare.TESTED)} adjusted together"
    return (
        f"Of the recipes ({seeds}, {adjusted}): {_wins(pairs, 'recipe')}. "
        f"Of these weights alone: {_wins(pairs, 'weights')}."
    )


def _wins(pairs: pd.DataFrame, about: str) -> str:
    """By what, and over whom, each recipe wins."""
    wins = []
    for row in pairs[~pairs[about].isin(statistics.UNTOLD)].to_dict("records"):
        better, other = (row["a"], row["b"])[:: 1 if row["difference"] > 0 else -1]
        size = f"by {abs(row['difference']):.1f}, {tables.p_value(row[f'holm_{about}'])}"
        wins.append(f"{title(better)} above {title(other)} in {row['metric']} ({size})")
    return ", ".join(wins) or "no two can be told apart"


def evaluation(run: str) -> list[str]:
    """Notebook 03 in sentences."""
    recipes = by_recipe(find(run)) or by_recipe(find(run), given=True)
    metrics = next(iter(recipes.values()))[0].metrics
    accuracy = {title(recipe): _accuracy(seeds) for recipe, seeds in recipes.items()}
    numbers = "; ".join(
        f"{way}: " + ", ".join(f"{name} {row[f'{way}, R@1']}" for name, row in accuracy.items())
        for way in WAYS.values()
    )
    bounds = f"chance is {100 / metrics['videos']:.1f}"
    if ceiling := metrics.get("t2v R@1 ceiling"):
        bounds += f", a perfect reader reaches {ceiling:.1f} text to video"
    return [
        f"R@1 {numbers}; {bounds}.",
        _verdicts(recipes) if len(recipes) > 1 else "One recipe: nothing to compare.",
        f"{_blind(on_families(run, recipes))} {signs.dead(recipes)}",
        *targets.sentences(run),
    ]


def _blind(recipes: dict[str, list[Run]]) -> str:
    """Which factors every method tells apart, which none does, and whose intervals are wide."""
    accuracy = pd.concat([per_factor_accuracy(seeds) for seeds in recipes.values()])
    if accuracy.empty:
        return "Accuracy by swapped factor was not recorded in this run."
    rows = accuracy.assign(half=(accuracy["high"] - accuracy["low"]) / 2).groupby("factor")
    low, high = rows.min(), rows.max()
    share = {n: f"{n} ({low.accuracy[n]:.0f} to {high.accuracy[n]:.0f} %)" for n in low.index}
    known = [share[name] for name in low.index[low["low"] > 90]]
    chance = [share[name] for name in high.index[~(high["low"] > 50)]]
    wide = [f"{r.Index} ({r.families} families)" for r in high[high["half"] > WIDE].itertuples()]
    few = f"Few families of videos make an interval wide: over {WIDE} points to either side for "
    within = f"Every interval is within {WIDE} points to either side"
    return (
        "Of two videos that differ in one factor only, every method puts the right one first in "
        f"nearly all pairs for {', '.join(known) or 'no factor'}; no method is surely above the "
        f"50 % of chance for {', '.join(chance) or 'no factor'}. "
        f"{few + ', '.join(wide) if wide else within}."
    )


def training(done: Run) -> list[str]:
    """Notebook 02 in sentences."""
    curve, history, card = done.curve, done.history, done.card
    if card["selection"] in AS_GIVEN:
        return [f"Not trained, {card['selection']}: {card['parameters']:,} parameters."]
    learnt = "There is no validation split: recall was not measured while training."
    if "split" in curve:
        recall = [
            f"{WAYS[way]} R@1 goes from {curve[f'{way} R@1'].iloc[0]:.1f} to "
            f"{curve[f'{way} R@1'].iloc[-1]:.1f}"
            for way in WAYS
        ]
        learnt = f"On {curve['split'].iloc[0]}, epoch 1 to {len(curve)}, {' and '.join(recall)}."
    tenth = max(1, len(history) // 10)
    parts = history.drop(columns=["step", "epoch", "lr", "logit_scale"])
    ends = zip(parts.columns, parts[:tenth].mean(), parts[-tenth:].mean(), strict=True)
    change = ", ".join(f"{name} {start:.3f} to {end:.3f}" for name, start, end in ends)
    return [
        learnt,
        f"Over {len(history)} steps (means of the first and last tenth): {change}.",
        f"It takes {card['train_seconds']:.0f} s on {card['device']}, {card['torch_threads']} "
        f"threads; {card['parameters']:,} parameters. {signs.sentence(done)}",
    ]


def _diagnostics(done: Run, number: str) -> dict[str, np.ndarray]:
    path = done.folder / f"diagnostics_{number}.json"
    return read_diagnostics(path) if path.exists() else {}


def _listed(numbers: dict[str, np.ndarray], names: Sequence[str], digits: int = 1) -> str:
    """Numbers by title, with intervals, of those that were measured."""
    known = [name for name in names if name in numbers and not np.isnan(numbers[name][0])]
    values = [diagnostics.format_interval(numbers[name], f"{{:.{digits}f}}") for name in known]
    return "; ".join(map(" ".join, zip(known, values, strict=True))) or "not measured"


def mining(done: Run) -> list[str]:
    """Notebook 04 in sentences."""
    numbers = _diagnostics(done, "04")
    return [
        f"{title(done.recipe)}: {_listed(numbers, ['mined pairs per caption'])}.",
        f"True hard negatives: {_listed(numbers, HARD)}.",
        f"False ones: {_listed(numbers, FALSE)}.",
    ]


def attention(done: Run) -> list[str]:
    """Notebook 05 in sentences."""
    numbers = _diagnostics(done, "05")
    gaps = [f"{what} deletion gap, R@1 (points)" for what in ("word", "frame")]
    masked = [name for name in numbers if name.startswith("TPM-CL") and "full > masked" in name]
    masked += ["captions with masked words (%)", "TPM-CL weight on start and end tokens (%)"]
    same = [name for name in numbers if name.startswith("cosine between")]
    areas = ["content word AUC", "word AUC", "frame AUC"]
    return [
        f"{title(done.recipe)}, agreement with the truth (0.5 is chance): "
        f"{_listed(numbers, areas, 3)}.",
        f"What removing the highest weights costs beyond removing random ones: "
        f"{_listed(numbers, gaps)}.",
        f"Parts of its own: {_listed(numbers, [*masked, *same], 1 if masked else 2)}.",
    ]


def control(run: str) -> str:
    """The sweep `time` in a sentence: whether time can be seen in this world, and by whom."""
    shares = []
    for name, seeds in sweeps.finished("time", run).items():
        accuracy = per_factor_accuracy([*seeds.values()]).query("factor == 'direction'")
        for row in accuracy.itertuples():
            shares.append(f"{name} {row.accuracy:.0f} % {interval(row.low, row.high, 0)}")
    if not shares:
        return "The control, whether time matters here (sweep `time`), was not run."
    return (
        "Control: of a video and the same played backwards, CLIP4Clip scores the right one higher "
        f"in this share of pairs (chance 50 %, {len(seeds)} seeds): {', '.join(shares)}."
    )


def ablations(run: str) -> list[str]:
    """Notebook 06 in sentences."""
    parts = _judged(sweeps.main_effects("dmae_components", run), "DMAE, {} minus without it")
    sides = {name: sweeps.sides(name, run) for name in sweeps.load_all()}
    every = {f"{name} {key}": runs for name, some in sides.items() for key, runs in some.items()}
    tests = sweeps.paired_tests(every)
    certain = ~tests.reindex(columns=["recipe", "weights"]).isin(statistics.UNTOLD)
    differs = certain.groupby(level=0).any().sum()
    sure = tests[certain["recipe"]]
    named = [f"{row.Index} {row.metric} {row.difference:+.1f}" for row in sure.itertuples()]
    return [
        control(run),
        " ".join(parts) or "DMAE's parts: nothing to compare yet.",
        f"Of {len(every)} variants of all sweeps, adjusted for all {len(tests)} comparisons, "
        f"{differs['recipe']} differ from their reference as recipes and {differs['weights']} as "
        f"the weights that were trained. As recipes: {', '.join(named) or 'none'}.",
    ]


def _judged(tests: pd.DataFrame, what: str) -> list[str]:
    """A sentence for each comparison of `sweeps.paired_tests`; `what` takes its name."""
    return [
        f"{what.format(name)} (seeds: {rows['seeds'].iloc[0]}): {tables.judged(rows)}"
        for name, rows in tests.groupby(level=0, sort=False)
    ]


def released(run: str) -> list[str]:
    """Notebook 08 in sentences."""
    sides = {}
    for name, corrected in (("dmae", "meanP/"), ("glscl", ""), ("hmmc", "")):
        both = (claims.by_seed(f"{run}/{at}{name}_shapes") for at in ("released/", corrected))
        sides[title(name)] = claims.same_seeds(*both)
    return [
        *_judged(sweeps.paired_tests(sides), "{}, released minus corrected"),
        *(f"{name}: not run." for name, runs in sides.items() if not runs[0]),
    ]


def pretraining(run: str, seed: int = 0) -> list[str]:
    """Notebook 07 in sentences."""
    if not files.run(f"{run}/pretraining").exists():
        return ["Pre-training was not run."]
    zero, alive, sides = [], [], {}
    for language, end in (("English", ""), ("Chinese", "_zh")):
        done = Run(files.run(f"{run}/pretraining/hmmc_pretrain_shapes{end}/seed{seed}"))
        zero.append(f"{compare.with_interval(done.metrics, 't2v R@1')} in {language}")
        alive.append(f"{language}: {signs.sentence(done)}")
        places = "pretrained/", "", "not_pretrained/"
        tuned, *alone = (claims.by_seed(f"{run}/{at}hmmc_shapes{end}") for at in places)
        sides[language] = claims.same_seeds(tuned, alone[0] or alone[1])
    return [
        f"Pre-trained and not fine-tuned, text-to-video R@1 is {' and '.join(zero)}.",
        " ".join(_judged(sweeps.paired_tests(sides), "{}, fine-tuned, pre-trained minus not")),
        " ".join(alive),
    ]


def _of_dmae(sentences: Callable[[Run], list[str]]) -> Callable[[str], list[str]]:
    """The sentences of one run, of that which notebooks 02, 04 and 05 open with."""
    return lambda run: sentences(Run(files.run(f"{run}/dmae_shapes/seed0")))


BLOCKS: dict[str, Callable[[str], str | list[str]]] = {
    "claims": pages.markdown,
    "dead": lambda run: signs.dead(by_recipe(find(run))),
    **{make.__name__: _of_dmae(make) for make in (training, mining, attention)},
    **{make.__name__: make for make in (results, evaluation, ablations, pretraining, released)},
}


def block(name: str, run: str = REFERENCE) -> str:
    """One of `BLOCKS` as Markdown; sentences as a list."""
    made = BLOCKS[name](run)
    return made.strip() if isinstance(made, str) else "\n".join(f"- {line}" for line in made)


def filled(text: str, run: str = REFERENCE) -> str:
    """A text with what stands between its marks made anew."""
    return MARK.sub(lambda mark: f"{mark[1]}\n{block(mark[2], run)}\n\n{mark[3]}", text)


def fill(home: Path) -> None:
    """Make the marked parts of the READMEs and notebooks below `home` anew."""
    for path in (home / "README.md", home / "reports" / "README.md"):
        files.write_text(path, filled(path.read_text(encoding="utf-8")))
    for path in sorted((home / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[0].source = filled(notebook.cells[0].source)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    fill(files.home())
