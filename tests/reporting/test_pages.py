"""Pages of a run and of all runs: one protocol a table, claims first, usable in a browser."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import escape
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from tests.fakes import finished_run
from tvrkit import files
from tvrkit.files import write_json
from tvrkit.reporting import claims, pages, sentences
from tvrkit.training.card import diagnostics, write_card


def page(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def rows(soup):
    """[{head: text}] of a table's rows."""
    heads = [head.text.strip() for head in soup.thead("th")]
    return [
        dict(zip(heads, [cell.text for cell in row("td")], strict=True)) for row in soup.tbody("tr")
    ]


def fill():
    """A run with three recipes of rising skill, the first with three seeds; sub-runs, pages,
    figures, diagnostics."""
    for skill, recipe in enumerate(("alpha", "beta", "gamma"), 1):
        finished_run(recipe, skill=skill, card={"parameters": 98} if recipe == "beta" else {})
    for seed in (1, 2):
        finished_run("alpha", seed=seed)
    finished_run("alpha", "mine/released", skill=3)
    finished_run("alpha", "mine/ablations/margin/0.1", skill=2)
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
    area = {"mean": 0.5, "low": None, "high": None}
    for name, numbers in {
        "alpha/seed0/diagnostics_04.json": {
            "precision (%)": {"mean": 41.25, "low": 38.0, "high": 44.0}
        },
        "beta/seed0/diagnostics_05.json": {"area": area, "nothing": area | {"mean": None}},
    }.items():
        write_json(root / name, diagnostics((root / name).parent, numbers))
    return pages.write_index("mine"), pages.write_leaderboard()


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
    finished_run("alpha")
    finished_run("beta", **other)
    shown = page(pages.write_index("mine").with_name("details.html"))("table")
    assert sorted(row["recipe"] for each in shown for row in rows(each)) == ["alpha", "beta"]
    assert len(shown) == 2
    assert ("NOT COMPARABLE" in page(pages.write_leaderboard()).text) == ("complete" in other)


def test_the_first_screen_is_claims_one_table_of_eight_columns_and_one_figure(home):
    for seed in (0, 1):
        finished_run("dmae_shapes", seed=seed, skill=3)
        finished_run("clip4clip_shapes", seed=seed, skill=1)
    index = page(pages.write_index("mine"))
    claimed, results = index("table")
    first, second = rows(claimed)[:2]
    assert "About these weights: t2v R@1 better" in first["this run says"]
    assert first["tested on"] == "shapes quick, 40 videos, 2 seeds"
    assert second["this run says"] == claims.UNTESTED
    assert second["tested on"] == "tvrkit sweep dmae_components --run mine"
    assert list(rows(results)[0]) == pages.OF_RUN
    assert len(pages.OF_RUN) == len(pages.OF_ALL) == 8
    assert [image["src"] for image in index("img")] == ["figures/claims.png"]
    assert (files.run("mine") / "figures" / "claims.png").exists()


def test_pages_show_the_results_best_first_and_sub_runs_apart(home):
    index, board = fill()
    root = files.run("mine")
    shown = rows(page(index)("table")[1])
    main, numbers = page(index.with_name("details.html"))("table")
    whole = rows(main)
    assert [row["recipe"] for row in whole] == ["gamma", "beta", "alpha"]
    metrics = json.loads((root / "gamma/seed0/metrics.json").read_text(encoding="utf-8"))
    expected = {
        "t2v R@1": f"{metrics['t2v R@1']:.1f}",
        "v2t 95 %": f"[{metrics['v2t R@1 low']:.1f}, {metrics['v2t R@1 high']:.1f}]",
        "seeds": "1",
    }
    assert {key: whole[0][key] for key in expected} == expected
    assert (whole[0]["parameters"], whole[0]["epoch kept"]) == ("1,234,567", "last")
    assert re.fullmatch(r"\d+\.\d ± \d\.\d", whole[2]["t2v R@1"])
    about = [whole[2][key] for key in ("seeds", "run cards", "notebooks")]
    assert about == ["3", "seed 0 seed 1 seed 2", "02 04"]
    swept, released = page(index.with_name("sweeps.html"))("table")
    assert [row["recipe"] for row in rows(swept) + rows(released)] == ["alpha · 0.1", "alpha"]
    assert [row["number"] for row in rows(numbers)] == ["precision (%)", "area", "nothing"]
    assert [{key: row[key] for key in pages.OF_RUN} for row in whole] == shown
    everywhere = rows(page(board).table)
    assert [{key: row[key] for key in pages.OF_ALL} for row in whole] == everywhere
    assert str(home) not in index.read_text(encoding="utf-8") + board.read_text(encoding="utf-8")


def test_the_markdown_has_the_claims_and_the_table(home):
    fill()
    lines = [line for line in pages.markdown("mine").splitlines() if line.startswith("|")]
    heads = [line for line, below in pairwise(lines) if "---" in below]
    assert [head.count("|") for head in heads] == [5, 9]
    assert heads[1] == f"| {' | '.join(pages.OF_RUN)} |"
    assert len(lines) == 2 + len(claims.load()) + 2 + 3


def test_diagnostics_of_all_methods_are_one_table(home):
    index, _ = fill()
    first, second, third = rows(page(index.with_name("details.html"))("table")[1])
    assert first == {
        "number": "precision (%)",
        "alpha, seed 0": "41.2 [38, 44]",
        "beta, seed 0": pages.ABSENT,
    }
    assert second == {"number": "area", "alpha, seed 0": pages.ABSENT, "beta, seed 0": "0.5"}
    assert third == {"number": "nothing", "alpha, seed 0": pages.ABSENT, "beta, seed 0": "unknown"}


def test_dead_parts_are_named_on_the_page_of_all_columns(home):
    run = finished_run("dmae_shapes")
    (run.folder / "curve.csv").write_text("epoch,words masked (%)\n1,40\n2,0.25\n")
    write_card(run.folder, run.card)
    details = page(pages.write_index("mine").with_name("details.html"))
    (row,) = rows(details("table")[-1])
    assert (row["sign"], row["2"]) == ("words masked (%)", "0.25")
    assert row["verdict"] == "TPM-CL masks almost no word, or almost all"


def test_dead_parts_are_said_below_the_results(home):
    """In the words of the README's sentence."""
    run = finished_run("dmae_shapes")
    (run.folder / "curve.csv").write_text("epoch,words masked (%)\n1,40\n2,0.25\n")
    write_card(run.folder, run.card)
    results = page(pages.write_index("mine"))("table")[1]
    assert sentences.block("dead", "mine") in results.find_next("p").text
    assert "TPM-CL masks almost no word, or almost all" in results.find_next("p").text


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
    (home / "README.md").write_text("", encoding="utf-8")
    written = [board, *index.parent.glob("*.html")]
    links = [(path.parent, link["href"]) for path in written for link in page(path)("a")]
    assert len(links) > 20
    assert [link for folder, link in links if not (folder / unquote(link)).exists()] == []


def test_a_page_runs_the_kit_s_script_and_nothing_else(home):
    finished_run("alpha")
    index = page(pages.write_index("mine"))
    (meta,) = index.head("meta", attrs={"http-equiv": "Content-Security-Policy"})
    policy = dict(rule.strip().split(" ", 1) for rule in meta["content"].split(";"))
    (script,) = index("script")
    digest = base64.b64encode(hashlib.sha256(script.string.encode()).digest()).decode()
    assert policy["script-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert "http" not in meta["content"]
    assert meta.find_previous(["script", "style", "img"]) is None  # it speaks of what follows
    assert [tag for tag in index(True) if any(name.startswith("on") for name in tag.attrs)] == []


def test_names_stay_text(home):
    """What a card or a folder is called must not become markup or end a table cell."""
    name = "<b>a|b & [c](d)"
    finished_run("alpha", card={"device": "<script>alert(1)</script>", "selection": name})
    finished_run(name)
    with pytest.warns(UserWarning, match="recipe name .* expected letters"):
        index, board = pages.write_index("mine"), pages.write_leaderboard()
    details = index.with_name("details.html")
    for path in (details, board):
        soup = page(path)
        assert [row["recipe"] for row in rows(soup.table)] == ["alpha"]
        assert all((path.parent / unquote(link["href"])).exists() for link in soup.table("a"))
    assert name in page(index).text
    assert page(index).find("b") is page(details).find("b") is None
    (row,) = rows(page(details).table)
    assert (row["device"], row["epoch kept"]) == ("<script>alert(1)</script>", name)
    table = pages.as_markdown(pd.DataFrame({"name": [name]}))
    assert r"| \<b\>a\|b & \[c\](d) |" in table


def test_what_is_not_finished_is_named_and_in_no_table(home):
    finished_run("alpha")
    begun = files.run("mine/alpha/seed1")
    begun.mkdir()
    (begun / "config.yaml").write_text("", encoding="utf-8")
    index = page(pages.write_index("mine"))
    assert "Not finished, and in no table: alpha/seed1" in index.text
    assert rows(index("table")[1])[0]["seeds"] == "1"


@pytest.mark.filterwarnings("ignore:.* is damaged and left out")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", b"{"),
        ("metrics.json", None),
        ("ranks.npz", b"PK"),
        ("run.json", b"[]"),
        ("run.json", b"\xff"),
        ("config.yaml", b"recipe: [\n"),
        ("diagnostics_04.json", b"{"),
        ("diagnostics_04.json", b'{"area": 1}'),
        ("diagnostics_04.json", b'{"area": {"mean": "<b>"}}'),
        ("diagnostics_04.json", b'{"area": {"mean": 0.5, "low": 1.5}}'),
    ],
)
def test_a_damaged_run_is_named_and_stops_nobody_else(home, name, content):
    finished_run("alpha")
    for run in ("mine", "mine/ablations/margin/0.1"):
        path = finished_run("beta", run).folder / name
        path.unlink() if content is None else path.write_bytes(content)
    index = page(pages.write_index("mine"))
    assert [row["recipe"] for row in rows(index("table")[1])] == ["alpha"]
    damaged = next(paragraph for paragraph in index("p") if "Damaged" in paragraph.text)
    listed = [item.text for item in damaged.find_next("ul")("li")]
    assert len(listed) == 2
    told = listed[0].replace(f"{files.run('mine/ablations/margin/0.1')}/beta/seed0/", "")
    assert f"beta/seed0: {name}" in told.replace(str(home), "")
    assert index.find("b") is None
    board = page(pages.write_leaderboard())
    assert [row["recipe"] for table in board("table") for row in rows(table)] == ["alpha"]


SHOWN = {"seed": "x", "parameters": "<b>", "train_seconds": None, "device": 7, "selection": []}
CURVES = {
    "empty": "",
    "no rows": "epoch,score\n",
    "no epoch": "a\n1\n",
    "ragged": "a,b\n1\n1,2,3\n",
    "words": "epoch,x\n0,<b>\n",
}


@pytest.mark.filterwarnings("ignore:.* is damaged and left out")
@pytest.mark.parametrize("name", [*SHOWN, *CURVES, "t2v R@1 low", "ties", "missing"])
def test_a_run_that_was_sealed_with_anything_stops_nobody_else(home, name):
    """Whoever can write a run card can write the hashes of what he made up."""
    finished_run("alpha")
    run = finished_run("beta")
    if name in CURVES:
        (run.folder / "curve.csv").write_text(CURVES[name])
    elif name not in SHOWN:
        rest = {key: value for key, value in run.metrics.items() if key != name}
        files.write_json(run.folder / "metrics.json", rest)
    write_card(run.folder, run.card | ({name: SHOWN[name]} if name in SHOWN else {}))
    assert "beta/seed0: " in page(pages.write_index("mine")).find("ul").text
    board = page(pages.write_leaderboard())
    assert [row["recipe"] for table in board("table") for row in rows(table)] == ["alpha"]


def test_a_leaderboard_cannot_be_edited(home):
    """R@1 of 99 in metrics.json, with or without its hash, and ranks of ones stand nowhere."""
    honest, edited, forged, ones = (finished_run(name) for name in ("a", "b", "c", "d"))
    for run in (edited, forged):
        files.write_json(run.folder / "metrics.json", run.metrics | {"t2v R@1": 99.0})
    write_card(forged.folder, forged.card)
    ranks = {key: np.ones_like(value) if value.ndim else value for key, value in ones.ranks.items()}
    np.savez_compressed(ones.folder / "ranks.npz", **ranks)
    with pytest.warns(UserWarning, match="left out") as caught:
        board = page(pages.write_leaderboard())
    assert [row["recipe"] for row in rows(board.table)] == [honest.recipe]
    reasons = "\n".join(sorted({str(warning.message) for warning in caught}))
    assert re.fullmatch(
        r".*/b/seed0 .*metrics.json: not as it was written.*\n"
        r".*/c/seed0 .*metrics.json: t2v R@1 is 99.0, ranks.npz gives .*\n"
        r".*/d/seed0 .*: ranks.npz: not as it was written.*",
        reasons,
    )


def test_a_run_without_results_is_refused_and_left_out(home):
    with pytest.raises(FileNotFoundError, match="no reports/ yet"):
        pages.write_leaderboard()
    (home / "reports" / "empty").mkdir(parents=True)
    (home / "reports" / "notes.txt").write_text("")
    assert pages.run_names() == []
    with pytest.raises(ValueError, match="reports/empty has no finished recipe"):
        pages.write_index("empty")
    board = pages.write_leaderboard().read_text(encoding="utf-8")
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

PROBE = """<!doctype html><iframe id="page" width="360" height="800" srcdoc="{page}"></iframe>
<pre id="found"></pre>
<script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const inner = frame.contentDocument, body = inner.body;
  const heads = [...inner.querySelector("tr").cells];
  const names = () => [...inner.querySelector("tbody").rows].map(row => row.cells[0].textContent);
  const head = title => heads.find(th => th.textContent.trim() === title);
  const click = title => {{
    head(title).firstElementChild.click();
    return [names(), head(title).ariaSort];
  }};
  const found = {{
    start: [names(), head("t2v R@1").ariaSort], again: click("t2v R@1"), recipe: click("recipe"),
    rank: click("t2v MnR"), sum: click("rsum"), size: click("parameters"),
    sorted: heads.filter(th => th.ariaSort && th.ariaSort !== "none").length,
    focus: (head("rsum").firstElementChild.focus(), inner.activeElement.textContent),
    overflow: [inner.documentElement.scrollWidth, inner.documentElement.clientWidth],
    boxes: [...inner.querySelectorAll(".scroll")].map(box => box.scrollWidth > box.clientWidth),
    gaps: (() => {{
      const t = inner.querySelectorAll("table")[1], b = t.querySelectorAll("th button")[1];
      b.click();
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
        finished_run(
            "a_recipe_with_a_long_name_that_cannot_be_broken_anywhere",
            "mine/a_section_with_a_long_name_too",
        )
        details = fill()[0].with_name("details.html")
    probe = details.with_name("probe.html")
    shown = escape(details.read_text(encoding="utf-8"))
    probe.write_text(PROBE.format(page=shown), encoding="utf-8")
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
    return found | {"scheme": request.param, "folder": details.parent}


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
    assert first[0] == second[0] == "41.2 [38, 44]"  # what is absent stays last


def test_a_phone_scrolls_tables_not_the_page(browser):
    wide, view = browser["overflow"]
    assert 300 < view <= 360
    assert wide <= view
    assert all(browser["boxes"][:1])


def test_nothing_comes_from_a_network(browser):
    assert all(name.startswith("file:") for name in browser["loaded"])
    for path in Path(browser["folder"]).parent.rglob("[dis]*.html"):
        assert not re.search(
            r"https?:|@import|(?:src|href)=[\"']?//", path.read_text(encoding="utf-8")
        )


def test_the_page_follows_the_reader_s_colour_scheme(browser):
    assert (
        browser["colour"]
        == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[browser["scheme"]]
    )
