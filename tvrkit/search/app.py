"""A local page over indexes: search, play the hit, see why. By Gradio, with nothing from the
network."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import numpy as np
import pandas as pd
import simplejpeg
from matplotlib.figure import Figure
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from tvrkit import figures
from tvrkit.inspection.attention import per_word, word_spans
from tvrkit.search import pages
from tvrkit.search import query as queries
from tvrkit.search.clips import VIDEO_SUFFIXES
from tvrkit.search.encoder import Query, global_vector
from tvrkit.search.index import Index
from tvrkit.search.rows import unpack

UPLOAD = "100mb"  # a video or picture as the query, at most
BAR = gr.Progress(track_tqdm=True)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(places: Sequence[str], host: str, port: int) -> None:
    """Run the page until it is stopped.

    Args:
        places: of indexes; the page switches between them.
        host: who may ask: on a loopback address, this machine alone, which may index folders too.
        port: of the page.
    """
    indexes = [Index.open(place) for place in places]
    route = Route("/clip/{number:int}/{file}", partial(clip, indexes))
    page(indexes, can_index=host in LOOPBACK).launch(
        server_name=host,
        server_port=port,
        max_file_size=UPLOAD,
        app_kwargs={"routes": [route]},
        theme=gr.themes.Base(),
        footer_links=[],
    )


def clip(indexes: Sequence[Index], request: Request) -> Response:
    """The file of a row of an index, by the row's key: no path comes from outside."""
    number, key = request.path_params["number"], request.path_params["file"]
    if number >= len(indexes) or not key.isalnum():
        return PlainTextResponse("no such video in the index", 404)
    found = indexes[number].table.search().where(f"file = '{key}'").select(["name"]).to_list()
    if not found or not os.path.isfile(found[0]["name"]):
        return PlainTextResponse("the video is gone: run `tvrkit index` again", 404)
    return FileResponse(os.fsdecode(found[0]["name"]))


def page(indexes: Sequence[Index], can_index: bool) -> gr.Blocks:
    """The page over `indexes`; with `can_index` it also brings a folder into one of them."""
    names = [(index.place, number) for number, index in enumerate(indexes)]
    with gr.Blocks(title="tvrkit search", analytics_enabled=False) as blocks:
        found = gr.State()
        with gr.Row():
            text = gr.Textbox(label="what happens in the video", scale=3)
            place = gr.Dropdown(names, value=0, label="index")
            where = gr.Textbox(label="filter", placeholder="duration < 60 and path like '%a%'")
        with gr.Accordion("or like this video or picture", open=False):
            upload = gr.File(label="query", type="filepath")
        button = gr.Button("search", variant="primary")
        hits = gr.HTML()
        with gr.Accordion("why: a hit, and its nearest miss", open=False):
            number = gr.Number(1, label="hit", precision=0, minimum=1)
            why = gr.Button("explain")
            drawn, missed = gr.Plot(show_label=False), gr.Plot(show_label=False)
        asked = [place, text, upload, where]
        for event in (button.click, text.submit):
            event(partial(search, indexes), asked, [hits, found])
        why.click(partial(explain, indexes), [place, found, number], [drawn, missed])
        if can_index:
            with gr.Accordion("bring a folder into this index", open=False):
                folder, state = gr.Textbox(label="folder"), gr.Textbox(label="done")
                gr.Button("index").click(partial(add, indexes), [place, folder], state)
    return blocks


def search(indexes: Sequence[Index], place: int, text: str, upload: str | None, where: str):
    """The hits as HTML, and the table behind them."""
    index = indexes[place]
    try:
        query = _query(index, text, upload)
        table = index.search(query, where=where.strip() or None)
    except (ValueError, OSError, RuntimeError) as error:
        raise gr.Error(str(error), print_exception=False) from None
    return pages.render([table], "hits.html", served=f"/clip/{place}/"), (query, table)


def _query(index: Index, text: str, upload: str | None) -> Query:
    if not upload:
        return index.encoder.text_query(text)
    path = Path(upload)
    is_video = path.suffix.lower() in VIDEO_SUFFIXES
    return index.encoder.video_query(path) if is_video else index.encoder.image_query(path)


def explain(indexes: Sequence[Index], place: int, found, number: int) -> tuple[Figure, ...]:
    """Why a hit scores what it does, and the same for the segment that looks most like it."""
    if not found or found[0].text is None or not 0 < number <= len(found[1]):
        raise gr.Error("expected the number of a hit of a search in words", print_exception=False)
    query, hit, index = found[0], found[1].iloc[number - 1], indexes[place]
    vector = global_vector(unpack([hit["features"]]))[0]
    near = queries.nearest(index.table, Query("", vector, query.score), 20)
    others = queries.ranked(near, queries.scores(query, near), 20).sort_values("_distance")
    others = others[others["file"] != hit["file"]]
    miss = others.iloc[0] if len(others) else hit
    shown = (("the hit", hit), ("looks most like it", miss))
    return tuple(why_figure(index, query, row, name) for name, row in shown)


def why_figure(index: Index, query: Query, hit: pd.Series, name: str) -> Figure:
    """The words over the frames they met, as the method's `explain` has them."""
    text: Any = query.text
    maps = index.encoder.method.explain(text, unpack([hit["features"]]))
    words = word_spans(query.label)
    labels, label = [query.label[a:b] for a, b in words], "cosine"
    if "word_frame" in maps:  # DMAE
        scores = per_word(maps["word_frame"][0].numpy(), query.tokens, words)
    elif "concept_words" in maps:  # GLSCL: by way of the concepts
        both = maps["concept_words"][0].T @ maps["concept_frames"][0]
        scores, label = per_word(both.numpy(), query.tokens, words), "share by way of concepts"
    else:
        scores, labels = maps["frame_text"].numpy(), ["sentence"]
    strip = simplejpeg.decode_jpeg(hit["strip"])
    count = int(unpack([hit["features"]]).mask.sum())
    frames = np.stack(np.split(strip, count, axis=1))
    title = f"{name}: {os.path.basename(hit['path'])}, score {hit['score']:.3f}"
    return figures.word_frame_map(scores[:, :count], labels, frames, label=label, title=title)


def add(indexes: Sequence[Index], place: int, folder: str, progress=BAR):
    """Bring a folder into an index, with the bar of the build; what came of it, in words."""
    index = indexes[place]
    try:
        made = Index.build(folder, index.place, index.encoder)
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from None
    index.card = made.card
    return f"{len(made.files()):,} files, {len(made.failures()):,} with a problem"
