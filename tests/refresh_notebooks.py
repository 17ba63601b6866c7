"""Run the notebooks on the smoke profile and store their outputs: what nbval compares with and a
reader sees.

`make notebooks` calls it. What differs from run to run (progress bars, timing, versions of Python)
is left out.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tvrkit.reporting.notebooks import kernel_config, without_progress

KEPT = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with outputs and tags, and no other trace of this execution."""
    notebook = without_progress(notebook)
    notebook.metadata = nbformat.from_dict(KEPT | {"language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict(
            {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        )
    return notebook


def refresh(path: Path) -> None:
    """Execute in place; a cell that raises leaves the file as it was."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": path.parent}}
    with kernel_config() as config:
        client = NotebookClient(notebook, kernel_name="python3", resources=resources, config=config)
        client.execute()
    nbformat.write(clean(notebook), path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["TVRKIT_HOME"] = home
        for path in sorted(map(Path, sys.argv[1:])):
            print(path.name, flush=True)
            refresh(path)
