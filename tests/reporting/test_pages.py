"""Leaderboard and run pages: numbers of metrics.json, one protocol a table, usable in a browser."""

import json
import re
import shutil
import subprocess
from html import escape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from bs4 import BeautifulSoup

from tvrkit import files
from tvrkit.evaluation.evaluate import Evaluation
from tvrkit.files import write_json
from tvrkit.reporting import pages as report
from tvrkit.settings import EvalConfig
from tvrkit.training import runs

DATA = {
    "protocol": "shapes",
    "made_from": {"preset": "quick", "omit": 0.25},
    "split_hash": {"test": "0" * 64},
    "counts": {"test": {"videos": 40, "ok": 40, "captions": 80}},
    "captions_hash": {"test": {"en": "1", "zh": "2"}},
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    return tmp_path


def finish(recipe, run="mine", seed=0, skill=1.0, data=(), card=(), ties="pessimistic", **labels):
    """A finished run folder of 40 videos with 2 captions each; more `skill`, more recall."""
    folder = files.run(run) / recipe / f"seed{seed}"
    owner = np.repeat(np.arange(40), 2)
    scores = np.random.default_rng(seed).normal(size=(80, 40)) + skill * (
        owner[:, None] == np.arange(40)
    )
    captions, videos = [f"c{row}" for row in range(80)], [f"v{column}" for column in range(40)]
    labels = {
        "split": "test",
        "language": "en",
        "selection": "last",
        "complete": True,
        "missing": [],
    } | labels
    Evaluation.from_similarity(
        scores, captions, videos, owner, EvalConfig(ties=ties), **labels
    ).save(folder)
    about = {
        "seed": seed,
        "data": DATA | dict(data),
        "selection": "last",
        "parameters": 1234567,
        "device": "CPU",
    }
    write_json(
        folder / "run.json",
        about | {"train_seconds": 10.0 + seed, "peak_memory_mb": 900 + seed} | dict(card),
    )
    return runs.Run(folder)


def page(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def table(soup):
    """[{head: text}] of a table's rows."""
    heads = [head.text.strip() for head in soup.thead("th")]
    return [
        dict(zip(heads, [cell.text for cell in row("td")], strict=True)) for row in soup.tbody("tr")
    ]


def fill():
    """A run with three recipes of rising skill, the first with three seeds; sub-runs, pages,
    figures, diagnostics."""
    for skill, recipe in enumerate(("alpha", "beta", "gamma"), 1):
        finish(recipe, skill=skill, card={"parameters": 98} if recipe == "beta" else {})
    for seed in (1, 2):
        finish("alpha", seed=seed)
    finish("alpha", "mine/released", skill=3)
    finish("alpha", "mine/ablations/margin/0.1", skill=2)
    root = files.run("mine")
    for name in (
        "03_evaluation.html",
        "alpha/seed0/02_training.html",
        "alpha/seed0/04_hard_negatives.html",
    ):
        (root / name).write_text("<p>", encoding="utf-8")
    for name in (
        "figures/03_ranks.png",
        "alpha/seed0/figures/02_loss.png",
        "alpha/seed0/figures/04_gallery.png",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    write_json(
        root / "alpha/seed0/diagnostics_04.json",
        {"precision (%)": {"mean": 41.25, "low": 38.0, "high": 44.0}},
    )
    area = {"mean": 0.5, "low": None, "high": None}
    write_json(
        root / "beta/seed0/diagnostics_05.json",
        {"area": area, "nothing": area | {"mean": float("nan")}},
    )
    return report.write_index("mine"), report.write_leaderboard()


def test_one_seed_has_the_numbers_of_its_metrics(home):
    run = finish("alpha", skill=2)
    (row,) = report.results([run]).to_dict("records")
    for way in ("t2v", "v2t"):
        assert {key: row[f"{way} {key}"] for key in report.MEANS} == {
            k: run.metrics[f"{way} {k}"] for k in report.MEANS
        }
        assert [row[f"{way} low"], row[f"{way} high"]] == [
            run.metrics[f"{way} R@1 {end}"] for end in ("low", "high")
        ]
        assert np.isnan(row[f"{way} deviation"])
    assert (row["rsum"], row["seconds"], row["memory"]) == (run.metrics["rsum"], 10.0, 900)


def test_several_seeds_are_averaged_and_their_interval_is_pooled(home):
    found = [finish("alpha", seed=seed, skill=2) for seed in range(3)]
    (row,) = report.results(found).to_dict("records")
    recalls = [run.metrics["t2v R@1"] for run in found]
    assert row["t2v R@1"] == pytest.approx(sum(recalls) / 3)
    assert row["t2v deviation"] == pytest.approx(
        (sum((x - sum(recalls) / 3) ** 2 for x in recalls) / 2) ** 0.5
    )
    assert row["t2v low"] < row["t2v R@1"] < row["t2v high"]
    widths = [run.metrics["t2v R@1 high"] - run.metrics["t2v R@1 low"] for run in found]
    assert row["t2v high"] - row["t2v low"] < min(
        widths
    )  # independent seeds say more than one of them
    assert (row["seconds"], row["memory"]) == (11.0, 902)


def test_a_seed_told_three_times_says_no_more_than_once(home):
    """Videos are resampled with all their seeds: copies of one result must not narrow the
    interval."""
    found = [finish("alpha", skill=2)]
    for seed in (1, 2):
        folder = found[0].folder.with_name(f"seed{seed}")
        shutil.copytree(found[0].folder, folder)
        found.append(runs.Run(folder))
    (row,) = report.results(found).to_dict("records")
    assert [row["v2t low"], row["v2t high"]] == [
        found[0].metrics[f"v2t R@1 {end}"] for end in ("low", "high")
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"data": {"made_from": {"preset": "quick", "omit": 0.5}}},
        {"data": {"captions_hash": {"test": {"en": "3"}}}},
        {"data": {"split_hash": {"test": "f" * 64}}},
        {"data": {"protocol": "msvd", "made_from": None}},
        {"data": {"partial": True}, "complete": False},
        {"language": "zh"},
        {"ties": "optimistic"},
        {"missing": ["v7"], "complete": False},
    ],
    ids=str,
)
def test_different_protocols_never_share_a_table(home, other):
    found = [finish("alpha"), finish("beta", **other)]
    with pytest.raises(
        ValueError, match=r"expected runs of one protocol in a table, got .*; shapes quick"
    ):
        report.results(found)
    tables = page(report.write_index("mine"))("table")
    assert sorted(row["recipe"] for each in tables for row in table(each)) == ["alpha", "beta"]
    assert len(tables) == 2
    words = page(report.write_leaderboard().with_name("index.html")).text
    assert ("NOT COMPARABLE" in words) == ("complete" in other)


def test_comparable_runs_share_seeds_and_protocol(home):
    first = finish("dmae", seed=0)
    finish("dmae", seed=1)
    for seed in (0, 1, 7):
        finish("glscl", seed=seed)
        finish("clip4clip", seed=seed, ties="optimistic")
    finish("hmmc", seed=0)  # a seed is missing
    same = report.comparable("mine", first, [1, 0])
    assert {name: [run.seed for run in group] for name, group in same.items()} == {
        "dmae": [1, 0],
        "glscl": [1, 0],
    }


def test_pages_show_the_results_best_first_and_sub_runs_apart(home):
    index, board = fill()
    root = files.run("mine")
    main, numbers, swept, released = page(index)("table")
    rows = table(main)
    assert [row["recipe"] for row in rows] == ["gamma", "beta", "alpha"]
    found = json.loads((root / "gamma/seed0/metrics.json").read_text(encoding="utf-8"))
    low, high = found["v2t R@1 low"], found["v2t R@1 high"]
    expected = {
        "t2v R@1": f"{found['t2v R@1']:.1f}",
        "v2t 95 %": f"[{low:.1f}, {high:.1f}]",
        "seeds": "1",
    }
    assert {key: rows[0][key] for key in expected} == expected
    assert (rows[0]["parameters"], rows[0]["epoch kept"]) == ("1,234,567", "last")
    assert re.fullmatch(r"\d+\.\d ± \d\.\d", rows[2]["t2v R@1"])
    assert (rows[2]["seeds"], rows[2]["run cards"], rows[2]["notebooks"]) == (
        "3",
        "seed 0 seed 1 seed 2",
        "02 04",
    )
    assert [row["recipe"] for row in table(swept) + table(released)] == ["alpha · 0.1", "alpha"]
    assert [row["number"] for row in table(numbers)] == ["precision (%)", "area", "nothing"]
    assert table(page(board.with_name("index.html")).table) == rows
    text = board.read_text(encoding="utf-8")
    assert text.index("| gamma |") < text.index("| beta |") < text.index("## mine/ablations/margin")
    assert str(home) not in text + index.read_text(encoding="utf-8")


def test_the_markdown_is_one_table_a_section(home):
    _, board = fill()
    lines = board.read_text(encoding="utf-8").splitlines()
    columns = {line.count("|") for line in lines if line.startswith("|")}
    assert columns == {len(report.HEADS) + 1}
    for number, line in enumerate(lines):
        if line.startswith("|---"):
            assert lines[number - 1].startswith("| recipe |")
            assert lines[number + 1].startswith("| ")


def test_diagnostics_of_all_methods_are_one_table(home):
    index, _ = fill()
    rows = table(page(index)("table")[1])
    assert rows[0] == {
        "number": "precision (%)",
        "alpha, seed 0": "41.2 [38.0, 44.0]",
        "beta, seed 0": report.ABSENT,
    }
    assert rows[1] == {"number": "area", "alpha, seed 0": report.ABSENT, "beta, seed 0": "0.500"}
    assert set(rows[2].values()) == {"nothing", report.ABSENT}


def test_figures_of_the_findings_are_open_and_every_link_leads_somewhere(home):
    index, board = fill()
    figures = {part.summary.text: "open" in part.attrs for part in page(index)("details")}
    assert figures == {"alpha, 1 figures": True, "all recipes, 1 figures": True}
    shown = {
        image["src"]: "open" in image.find_parent("details").attrs for image in page(index)("img")
    }
    inner = "alpha/seed0/figures"
    assert shown == {
        f"{inner}/02_loss.png": False,
        "figures/03_ranks.png": True,
        f"{inner}/04_gallery.png": True,
    }
    links = [(index.parent, link) for link in page(index)("a")]
    links += [(board.parent, link) for link in page(board.with_name("index.html"))("a")]
    assert [
        link["href"] for folder, link in links if not (folder / unquote(link["href"])).exists()
    ] == []
    text = board.read_text(encoding="utf-8")
    assert all((board.parent / unquote(link)).exists() for link in re.findall(r"\]\((.+?)\)", text))


def test_names_stay_text(home):
    """A recipe may be any YAML file; its name must not become markup or end a table cell."""
    name = "<b>a|b & [c](d)"
    finish(name, card={"device": "<script>alert(1)</script>"})
    index, board = report.write_index("mine"), report.write_leaderboard()
    for path in (index, board.with_name("index.html")):
        soup = page(path)
        assert table(soup.table)[0]["recipe"] == name
        assert table(soup.table)[0]["device"] == "<script>alert(1)</script>"
        assert soup.find("b") is None
        assert all((path.parent / unquote(link["href"])).exists() for link in soup.table("a"))
    assert r"| \<b\>a\|b & \[c\](d) |" in board.read_text(encoding="utf-8")


def test_what_is_not_finished_is_named_and_in_no_table(home):
    finish("alpha")
    begun = files.run("mine/alpha/seed1")
    begun.mkdir()
    (begun / "config.yaml").write_text("", encoding="utf-8")
    index = page(report.write_index("mine"))
    assert "Not finished, and in no table: alpha/seed1" in index.text
    assert table(index.table)[0]["seeds"] == "1"


def test_a_run_without_results_is_refused_and_left_out(home):
    with pytest.raises(FileNotFoundError, match="no reports/ yet"):
        report.write_leaderboard()
    (home / "reports" / "empty").mkdir(parents=True)
    (home / "reports" / "notes.txt").write_text("")
    assert report.run_names() == []
    with pytest.raises(ValueError, match="reports/empty has no finished recipe"):
        report.write_index("empty")
    board = report.write_leaderboard().read_text(encoding="utf-8")
    assert "No run is finished." in board
    assert "empty" not in board


def test_colours_have_enough_contrast_in_both_schemes():
    """WCAG 2.1, 1.4.3: 4.5 : 1."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    css = (files.ASSETS / "style.html").read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--(\w+): (#\w{6})", rule)) for rule in re.findall(r":root \{[^}]*\}", css)
    ]
    assert len(schemes) == 2
    assert re.findall(r"@media (.*)\(prefers-color-scheme: dark\)", css) == ["screen and "], (
        "paper stays light"
    )
    for scheme in schemes:
        for text in ("ink", "soft", "link"):
            for ground in ("paper", "band"):
                dark, light = sorted(luminance(scheme[key]) for key in (text, ground))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


#  ------------------------------------------------------------------------------------------------

PROBE = """<!doctype html><iframe id="page" width="360" height="800" srcdoc="{page}"></iframe><pre id="found"></pre>
<script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const inner = frame.contentDocument, body = inner.body, heads = [...inner.querySelector("tr").cells];
  const names = () => [...inner.querySelector("tbody").rows].map(row => row.cells[0].textContent);
  const head = title => heads.find(th => th.textContent.trim() === title);
  const click = title => {{ head(title).firstElementChild.click(); return [names(), head(title).ariaSort]; }};
  const found = {{
    start: [names(), head("t2v R@1").ariaSort], again: click("t2v R@1"), recipe: click("recipe"),
    rank: click("t2v MnR"), sum: click("rsum"), size: click("parameters"),
    sorted: heads.filter(th => th.ariaSort && th.ariaSort !== "none").length,
    focus: (head("rsum").firstElementChild.focus(), inner.activeElement.textContent),
    overflow: [inner.documentElement.scrollWidth, inner.documentElement.clientWidth],
    boxes: [...inner.querySelectorAll(".scroll")].map(box => box.scrollWidth > box.clientWidth),
    gaps: (() => {{ const t = inner.querySelectorAll("table")[1], b = t.querySelectorAll("th button")[1]; b.click();
      const first = [...t.tBodies[0].rows].map(r => r.cells[1].textContent); b.click();
      return [first, [...t.tBodies[0].rows].map(r => r.cells[1].textContent)]; }})(),
    colour: frame.contentWindow.getComputedStyle(body).backgroundColor,
    loaded: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
  }};
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>"""


@pytest.fixture(scope="module", params=["light", "dark"])
def browser(request, tmp_path_factory):
    """What headless Chromium makes of a run's page in a frame 360 pixels wide."""
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if program is None:
        pytest.skip("no Chromium on PATH: apt install chromium")
    home = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVRKIT_HOME", str(home))
        finish(
            "a_recipe_with_a_long_name_that_cannot_be_broken_anywhere",
            "mine/a_section_with_a_long_name_too",
        )
        index, _ = fill()
    probe = index.with_name("probe.html")
    probe.write_text(PROBE.format(page=escape(index.read_text(encoding="utf-8"))), encoding="utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if request.param == "dark" else []
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={home / 'profile'}",
        *scheme,
    ]
    command = [program, *options, "--virtual-time-budget=10000", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(BeautifulSoup(done.stdout, "html.parser").find(id="found").text)
    return found | {"scheme": request.param, "folder": index.parent}


def test_a_click_on_a_head_sorts_and_says_so(browser):
    assert browser["start"] == [["gamma", "beta", "alpha"], "descending"]
    assert browser["again"] == [["alpha", "beta", "gamma"], "ascending"]
    assert browser["recipe"] == [["alpha", "beta", "gamma"], "ascending"]
    assert browser["rank"] == [
        ["gamma", "beta", "alpha"],
        "ascending",
    ]  # the lower the mean rank, the better
    assert browser["sum"] == [["gamma", "beta", "alpha"], "descending"]
    assert browser["size"][0][0] == "beta"  # 98 is less than 1,234,567, though not as text
    assert browser["sorted"] == 1
    assert browser["focus"] == "rsum"
    first, second = browser["gaps"]
    assert first[0] == second[0] == "41.2 [38.0, 44.0]"  # what is absent stays last


def test_a_phone_scrolls_tables_not_the_page(browser):
    wide, view = browser["overflow"]
    assert 300 < view <= 360
    assert wide <= view
    assert all(browser["boxes"][:1])


def test_nothing_comes_from_a_network(browser):
    assert all(name.startswith("file:") for name in browser["loaded"])
    for path in Path(browser["folder"]).parent.rglob("index.html"):
        assert not re.search(
            r"https?:|@import|(?:src|href)=[\"']?//", path.read_text(encoding="utf-8")
        )


def test_the_page_follows_the_reader_s_colour_scheme(browser):
    assert (
        browser["colour"]
        == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[browser["scheme"]]
    )


def test_the_numbers_in_readme_and_recipes_are_those_of_the_committed_run(monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.setenv("TVRKIT_HOME", str(root))
    readme = (root / "README.md").read_text(encoding="utf-8")
    shown = [
        line
        for line in readme[readme.index("## What comes out") :].splitlines()
        if line.startswith("|")
    ][2:6]
    found = report.sections("reference")
    labels = {
        "glscl": "GLSCL",
        "dmae": "DMAE + NegNCE + TPM-CL",
        "clip4clip": "CLIP4Clip, seqTransf (baseline)",
    }
    expected = []
    for row in report.results(found[""]).to_dict("records"):
        cells = [(labels | {"hmmc": "HMMC"})[row["recipe"].removesuffix("_shapes")]]
        for way in report.WAYS:
            mean, *more = (
                f"{row[f'{way} {key}']:.1f}"
                for key in ("R@1", "deviation", "low", "high", "R@5", "R@10")
            )
            cells += ["{} ± {} [{}, {}]".format(mean, *more[:3]), *more[3:]]
        assert len(row["runs"]) == 3
        expected.append(f"| {' | '.join(cells)} |")
    assert shown == expected
    (english,) = (run for run in found["pretraining"] if run.recipe == "hmmc_pretrain_shapes")
    header = (files.RECIPES / "hmmc_pretrain_shapes.yaml").read_text(encoding="utf-8")
    assert f"{english.metrics['t2v R@1']:.1f} without" in header
