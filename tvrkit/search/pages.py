"""What a search found, as lines, as JSON and as a page."""

import base64
import json
from urllib.parse import quote

import jinja2
import pandas as pd

from tvrkit import files

NOTHING = "nothing matches: unrelated queries score as high"


def notes(found: pd.DataFrame) -> list[str]:
    """What the searcher should know."""
    return [*found.attrs["notes"], *([] if found.attrs["matches"] else [NOTHING])]


def to_lines(found: pd.DataFrame) -> str:
    """A line for each hit; control characters of names are escaped."""
    return "\n".join(
        f"{hit.score:.3f}  {hit.start:.1f}-{hit.end:.1f} s  {shown(hit.path)}"
        + (f"  (and {len(hit.copies)} near-duplicates)" if hit.copies else "")
        for hit in found.itertuples()
    )


def shown(path: str) -> str:
    """A path on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)


def to_json(found: pd.DataFrame) -> str:
    """One line: query, matches, notes and hits."""
    told = found.drop(columns=["name", "strip", "features"])
    hits = told.to_json(orient="records", date_format="iso", double_precision=6)
    return json.dumps({**found.attrs, "hits": json.loads(hits)}, ensure_ascii=False)


def render(found: list[pd.DataFrame], template: str = "search.html", **names) -> str:
    """A page that needs no other file: film strips inside, links to the videos at their time.

    Args:
        found: tables of `Index.search`.
        template: of `assets/`; "hits.html" is the part without the frame.
        names: `served`, see the template.
    """
    folder = jinja2.FileSystemLoader(files.ASSETS)
    environment = jinja2.Environment(loader=folder, autoescape=True, trim_blocks=True)
    environment.filters |= {"base64": lambda data: base64.b64encode(data).decode(), "quote": quote}
    searches = [(table.attrs["query"], notes(table), list(table.itertuples())) for table in found]
    return environment.get_template(template).render(title="search", searches=searches, **names)
