"""What a video costs, as docs/scale.md counts it:

    python -m tests.benchmarks.cost_of_a_video FOLDER BACKBONE

Prints processor seconds of decoding a video and of encoding a segment with random weights (both
also where other programs share the machine), and bytes a segment takes in an index.
"""

import resource
import sys
from pathlib import Path

from tvrkit.data.decoders import DecodePool
from tvrkit.search.clips import find, read
from tvrkit.search.encoder import Encoder


def cpu(who: int) -> float:
    """Seconds of user and system time."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def main(folder: str, backbone: str) -> None:
    """Measure, print."""
    encoder, files = Encoder(backbone=backbone), find(Path(folder))
    with DecodePool(1) as pool:
        began = cpu(resource.RUSAGE_SELF)
        made = [read(pool, row, encoder.frames, 10.0) for row in files]
        own = cpu(resource.RUSAGE_SELF) - began
    decoding = own + cpu(resource.RUSAGE_CHILDREN)  # known when the worker has ended
    seconds = sum(segments[0]["duration"] for segments in made)
    rows = [row for segments in made for row in segments]
    began = cpu(resource.RUSAGE_SELF)
    table = encoder.table(rows)
    encoding = cpu(resource.RUSAGE_SELF) - began
    print(f"{len(files)} videos of {seconds:.0f} s in all, {len(rows)} segments")
    print(f"decoding: {decoding / len(files):.2f} processor seconds a video")
    print(f"encoding: {encoding / len(rows):.2f} processor seconds a segment")
    for name in ("features", "strip", "vector"):
        print(f"{name}: {table[name].nbytes / len(rows):,.0f} bytes a segment")


if __name__ == "__main__":
    main(*sys.argv[1:])
