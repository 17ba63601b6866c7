"""The table of docs/performance.md, from what `make bench` has measured:

python -m tests.benchmarks.table docs/performance.json docs/performance.md
"""

import json
import sys
from pathlib import Path

BEGIN, END = "<!-- benchmarks -->\n", "<!-- end -->\n"


def slim(found: dict) -> dict:
    """Of a file that pytest-benchmark has written, what is kept."""
    if "rows" in found:
        return found
    every = [each["extra_info"] for each in found["benchmarks"]]
    rows, rates = ([each for each in every if key in each] for key in ("ratio", "rate"))
    machine = found["machine_info"]["cpu"]
    return {"processor": machine.get("brand_raw", "?"), "threads": 2, "rows": rows, "rates": rates}


def table(found: dict) -> str:
    """Markdown, a row per comparison, and what is measured on the clock."""
    lines = ["| what, against its plain form | plain, s | fast, s | times |", "|---|---|---|---|"]
    for row in found["rows"]:
        cells = f"{row['plain_s']:.3g} | {row['fast_s']:.3g} | {row['ratio']:.4g}"
        lines.append(f"| {row['what']} | {cells} |")
    lines += [
        f"\n{each['what']}: {each['rate']:.0f} a second, on the clock." for each in found["rates"]
    ]
    return "\n".join(lines) + "\n"


def main(measured: str, page: str) -> None:
    """Keep what was measured, write it into the page."""
    found = slim(json.loads(Path(measured).read_text(encoding="utf-8")))
    Path(measured).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = Path(page).read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END, 1)[1]
    about = f"On {found['processor']}, {found['threads']} threads, seconds of its processors:\n\n"
    Path(page).write_text(
        before + BEGIN + "\n" + about + table(found) + "\n" + END + after, "utf-8"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
