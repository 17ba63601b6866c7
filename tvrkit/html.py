"""Pages from the templates of `assets/`."""

import base64
from urllib.parse import quote

import jinja2

from tvrkit.files import ASSETS


def render(template: str, **values: object) -> str:
    """A page from a template of `assets/`; texts are escaped, a missing name is an error.

    The content security policy of `base.html` lets a browser run the kit's own script and nothing
    else, and load nothing but pictures beside it. Filters besides Jinja's: `base64` of bytes, and
    `quote` of bytes or text for an address.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"base64": lambda data: base64.b64encode(data).decode(), "quote": quote}
    return environment.get_template(template).render(**values)
