"""A local page over indexes: search, play the hit, see why. By Gradio, with nothing from the
network."""

import os
from collections.abc import Callable, Sequence
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
from tvrkit.data.features import unpack
from tvrkit.files import on_one_line
from tvrkit.inspection.attention import words_over_frames
from tvrkit.search import query as queries
from tvrkit.search.encoder import Query
from tvrkit.search.index import Index

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
    options: dict[str, Any] = {"footer_links": [], "theme": gr.themes.Base()}
    options |= {"max_file_size": "100mb", "app_kwargs": {"routes": [route]}}  # of a query
    page(indexes, can_index=host in LOOPBACK).launch(server_name=host, server_port=port, **options)


def clip(indexes: Sequence[Index], request: Request) -> Response:
    """The file of a row of an index, by the row's key: no path comes from outside."""
    number, key = request.path_params["number"], request.path_params["file"]
    if number < len(indexes) and key.isalnum():
        known = indexes[number].table.search().where(f"file = '{key}'").select(["name"])
        for path in {os.fsdecode(row["name"]) for row in known.to_list()}:
            if os.path.isfile(path):
                return FileResponse(path)
    return PlainTextResponse("no such video in the index, or it is gone since", 404)


def page(indexes: Sequence[Index], can_index: bool) -> gr.Blocks:
    """The page over `indexes`; with `can_index` it also brings a folder into one of them."""
    names = [(f"{i.place} ({i.card['made']['method']})", n) for n, i in enumerate(indexes)]
    with gr.Blocks(title="tvrkit search", analytics_enabled=False) as blocks:
        result = gr.State()
        with gr.Row():
            text = gr.Textbox(label="what happens in the video", scale=3)
            place = gr.Dropdown(names, value=0, label="index (method)")
            where = gr.Textbox(label="filter", placeholder="duration < 60 and path like '%a%'")
        with gr.Accordion("or like this video or picture", open=False):
            upload = gr.File(label="query", type="filepath")
        button = gr.Button("search", variant="primary")
        wrong = gr.Textbox(label="what went wrong", visible=False)
        hits = gr.HTML()
        with gr.Accordion("why: a hit, and its nearest miss", open=False):
            number = gr.Number(1, label="hit", precision=0, minimum=1)
            why = gr.Button("explain")
            drawn, missed = gr.Plot(show_label=False), gr.Plot(show_label=False)
        for event in (button.click, text.submit):
            run = partial(answered, 4, search, indexes)
            event(run, [place, text, upload, where], [hits, result, drawn, missed, wrong])
        why.click(partial(answered, 2, explain, indexes), [result, number], [drawn, missed, wrong])
        if can_index:
            with gr.Accordion("bring a folder into this index: open it, tick its dot", open=False):
                root = os.path.abspath(os.sep)
                folder = gr.FileExplorer(root_dir=root, file_count="single", label="folder")
                state = gr.Textbox(label="what came of it")
                gr.Button("index").click(partial(add, indexes), [place, folder], state)
    return blocks


def answered(count: int, function: Callable, *inputs: Any) -> list:
    """The `count` values of a function, and last what went wrong; it stays until the next time."""
    try:
        return [*function(*inputs), gr.Textbox(visible=False)]
    except (ValueError, OSError, RuntimeError) as error:
        return [gr.skip()] * count + [gr.Textbox(str(error), visible=True)]


def search(indexes: Sequence[Index], place: int, text: str, upload: str | None, where: str):
    """The hits as HTML, the table behind them, and no more explanation of the last ones."""
    try:
        query = indexes[place].encoder.file_query(Path(upload)) if upload else text
    except RuntimeError as error:  # a `DecodeError` names a temporary file
        raise RuntimeError(str(error).replace(f"{Path(upload or '').parent}/", "")) from None
    table = indexes[place].search(query, where=where.strip() or None)
    table.attrs["index"] = place
    return queries.render([table], "hits.html", served=f"/clip/{place}/"), table, None, None


def explain(indexes: Sequence[Index], result: pd.DataFrame | None, number: int | None) -> tuple:
    """Why a hit scores what it does, and the same for the segment that looks most like it."""
    if result is None or not result.attrs["language"] or not (number and 0 < number <= len(result)):
        raise ValueError("expected the number of a hit of a search in words")
    index, hit = indexes[result.attrs["index"]], result.iloc[number - 1]
    query = index.encoder.text_query(result.attrs["query"])
    near = queries.nearest(index.table, hit["vector"], 20, f"file != '{hit['file']}'").to_pandas()
    others = near[near["_distance"] > 1 - queries.SAME]
    missed = [why_figure(index, query, miss, "looks like it") for _, miss in others[:1].iterrows()]
    return (why_figure(index, query, hit, "the hit"), *missed, None)[:2]


def why_figure(index: Index, query: Query, hit: pd.Series, name: str) -> Figure:
    """The words over the frames they met, as the method's `explain` has them."""
    method, video = index.encoder.method, unpack([hit["features"]])
    attention = method.explain(query.text, video.to(index.encoder.device))
    maps = {key: tensor[0].cpu().numpy() for key, tensor in attention.items()}
    text = method.backbone.tokenizer.clean_fn(query.label)
    scores, labels, label = words_over_frames(maps, text, query.tokens)
    count, score = int(video.mask.sum()), query.score(video).item()
    frames = np.stack(np.split(simplejpeg.decode_jpeg(hit["strip"]), count, axis=1))
    title = f"{name}: {os.path.basename(hit['path'])}, score {score:.3f}"
    return figures.word_frame_map(scores[:, :count], labels, frames, label=label, title=title)


def add(indexes: Sequence[Index], place: int, folder: str | None, progress=BAR) -> str:
    """Bring a folder into an index, with the bar of the build; what came of it, in words."""
    if not folder:
        return "No folder is chosen."
    try:
        made = Index.build(folder, indexes[place].place, indexes[place].encoder)
    except (ValueError, OSError, RuntimeError) as error:
        return str(error)
    failed = [f"{on_one_line(row.path)}: {row.reason}" for row in made.failures().itertuples()]
    return "\n".join([f"{len(made.files()):,} files, {len(failed):,} with a problem", *failed])
