"""The page finds, shows, explains, serves indexed files alone, and says in a line what is wrong."""

import os
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from tvrkit.models.dmae import DMAE, DMAESettings
from tvrkit.search.encoder import Encoder
from tvrkit.search.index import Index


@pytest.fixture(scope="module")
def app():
    """The page; it takes seconds to load, so that only the process loads it which tests it."""
    pytest.importorskip("gradio", reason="the page needs the extra `search`")
    from tvrkit.search import app

    return app


@pytest.fixture
def client(app, index):
    route = Route("/clip/{number:int}/{file}", lambda request: app.clip([index], request))
    return TestClient(Starlette(routes=[route]))


def test_hits_are_shown_and_explained(app, index, corpus):
    html, table, *old = app.search([index], 0, "a red circle falls", None, "")
    assert html.count("<video") == len(table) == 10
    assert old == [None, None], "the last search's explanation goes"
    assert f"/clip/0/{table['file'][0]}#t=0.00,2.00" in html
    hit, miss = app.explain([index], table, 1)
    assert "sentence" in [label.get_text() for label in hit.axes[1].get_yticklabels()]
    assert hit.get_suptitle() or hit.axes[0].get_title(loc="left") or hit.texts
    assert miss is not hit


def test_words_over_frames_of_dmae(app, videos, tmp_path, monkeypatch):
    encoder = Encoder(None, "tvrkit-tiny", "tvrkit")
    settings = DMAESettings(max_frames=encoder.frames, temporal_layers=1, partial_order=[])
    encoder.method = DMAE(encoder.method.backbone, settings).eval()
    index = Index.build(videos, tmp_path / "index", encoder)
    _, found, *_ = app.search([index], 0, "a red circle falls", None, "")
    hit, _ = app.explain([index], found, 1)
    labels = [label.get_text() for label in hit.axes[1].get_yticklabels()]
    assert labels == ["a", "red", "circle", "falls"]
    assert np.abs(hit.axes[1].images[0].get_array()).max() <= 1, "a cosine of each word"
    _, found, *_ = app.search([index], 0, "A  red,   CIRCLE", None, "")
    hit, _ = app.explain([index], found, 1)
    labels = [label.get_text() for label in hit.axes[1].get_yticklabels()]
    assert labels == ["a", "red,", "circle"]


def test_a_video_or_picture_as_the_query(app, index, corpus):
    path = sorted(corpus.iterdir())[4]
    _, table, *_ = app.search([index], 0, "", str(path), "")
    assert table["path"][0] == str(path)
    with pytest.raises(ValueError, match="expected the number of a hit of a search in words"):
        app.explain([index], table, 1)


@pytest.mark.parametrize(
    ("text", "upload", "where", "message"),
    [
        ("", None, "", "expected words"),
        ("red", None, "nosuch = 1", "filter 'nosuch = 1'"),
        ("", __file__, "", "no picture"),
    ],
)
def test_what_is_wrong_is_one_line_until_the_next_search(app, index, text, upload, where, message):
    *kept, wrong = app.answered(4, app.search, [index], 0, text, upload, where)
    assert kept == [app.gr.skip()] * 4
    assert wrong.visible
    assert message in wrong.value
    assert len(wrong.value.splitlines()) == 1
    *_, wrong = app.answered(4, app.search, [index], 0, "red", None, "")
    assert not wrong.visible


@pytest.mark.parametrize("name", ["mine.mp4", "mine.txt"])
def test_an_uploaded_file_is_named_as_its_owner_knows_it(app, index, tmp_path, name):
    (tmp_path / name).write_text("no video")
    *_, wrong = app.answered(4, app.search, [index], 0, "", str(tmp_path / name), "")
    assert wrong.value.startswith(f"{name}: ")
    assert str(tmp_path) not in wrong.value


def test_only_indexed_files_are_served(index, client, corpus):
    key = index.files()["file"][0]
    answer = client.get(f"/clip/0/{key}", headers={"Range": "bytes=0-9"})
    assert (answer.status_code, len(answer.content)) == (206, 10)
    for path in ("/clip/0/abc", "/clip/7/" + key, "/clip/0/..%2Fsecret", "/clip/0/' or 1=1 --"):
        assert client.get(path).status_code == 404


def test_a_video_that_is_gone(app, videos, tmp_path, encoder):
    index = Index.build(videos, tmp_path / "index", encoder)
    route = Route("/clip/{number:int}/{file}", lambda request: app.clip([index], request))
    key = index.files()["file"][0]
    shutil.rmtree(videos)
    answer = TestClient(Starlette(routes=[route])).get(f"/clip/0/{key}")
    assert (answer.status_code, answer.text) == (
        404,
        "no such video in the index, or it is gone since",
    )


def test_a_folder_is_brought_in(app, videos, tmp_path, encoder, long_video):
    index = Index.build(videos, tmp_path / "index", encoder)
    shutil.copy(long_video, videos)
    assert app.add([index], 0, str(videos)) == "5 files, 0 with a problem"
    (videos / "broken.mp4").write_text("no video")
    said = app.add([index], 0, str(videos)).splitlines()
    assert said[0] == "6 files, 1 with a problem"
    assert "broken.mp4: can't be read" in said[1]
    assert "no folder of videos" in app.add([index], 0, str(tmp_path / "nowhere"))
    assert app.add([index], 0, None) == "No folder is chosen."
    _, table, *_ = app.search([index], 0, "a square", None, "duration > 40")
    assert len(table) > 1


def test_a_space_serves_the_videos_that_lie_beside_it(app, videos, tmp_path, encoder, monkeypatch):
    made = tmp_path / "made"
    made.mkdir()
    Index.build(videos.rename(made / "videos"), made / "index", encoder)
    space, served = made.rename(tmp_path / "space"), []
    shutil.copy(Path(__file__).parents[2] / "examples" / "space" / "app.py", space)
    monkeypatch.setattr(app, "serve", lambda *places, **options: served.append((places, options)))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(space / "app.py"), run_name="__main__")
    assert served == [((["index"],), {"host": "0.0.0.0", "port": 7860})]
    paths = Index.open(space / "index").files()["path"].tolist()
    assert sorted(paths) == sorted(map(str, (space / "videos").iterdir()))


def test_no_analytics_and_no_indexing_for_strangers(app, index):
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    labels = {
        can_index: [
            getattr(block, "label", "") for block in app.page([index], can_index).blocks.values()
        ]
        for can_index in (True, False)
    }
    assert "folder" in labels[True]
    assert "folder" not in labels[False]
