"""The backbone matrix: what each family was seen to do.

`python -m tests.models.matrix docs/backbones.md` writes the page.
"""

import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

from tvrkit.models import checkpoints
from tvrkit.models.clip4clip import CLIP4Clip
from tvrkit.reporting.pages import as_markdown

from .families import FAMILIES, build, case, expected, open_clip, step


def row(name: str, folder: Path) -> dict[str, str]:
    """What is known of a family, and what was seen of its small model."""
    method, batch = case(name, folder)
    backbone, config = method.backbone, open_clip.get_model_config(name)
    text, vision = config["text_cfg"], config["vision_cfg"]
    tags = open_clip.list_pretrained_tags_by_model(name)
    facts = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    fits = sorted({f"{fact['resize_mode']}, {fact['interpolation']}" for fact in facts})
    with torch.no_grad():
        words, sentence = backbone.encode_text(batch.tokens, batch.token_mask)
        frames = backbone.encode_frames(batch.frames).flatten(0, 1)
    pairs = zip((sentence, frames), expected(backbone, batch), strict=True)
    off = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    moved = step(method, batch)
    towers = [any(f"clip.{tower}." in key for key in moved) for tower in ("text", "visual")]
    finite = all(gradient.isfinite().all() for gradient in moved.values())
    checkpoints.save(method, folder / "one.safetensors")
    other = CLIP4Clip(build(name, folder), method.settings).eval()
    checkpoints.load(other, folder / "one.safetensors")
    back = other.encode_video(batch).frames.equal(method.encode_video(batch).frames)
    reads = "both ways" if backbone.is_hf or backbone.clip.text.attn_mask is None else "causal"
    return {
        "model": name,
        "pictures": f"{vision['image_size']} pixels; {' or '.join(fits) or 'no tag says'}",
        "text tower": f"{text.get('hf_model_name', 'CLIP')}, {reads}",
        "tokens": str(text.get("context_length", "77")),
        "words": "yes" if words.isfinite().all() else "no",
        "sentence and frames off open_clip's by": f"{off:.0e}" if off else "0",
        "a step trains both towers": "yes" if all(towers) and finite else "no",
        "loads back": "equal" if back else "no",
        "patch attention": f"no: {lack}" if (lack := FAMILIES[name]) and backbone.lacks else "yes",
    }


PAGE = """# Backbones

Any open_clip model is one. Of each family the kit was seen to do this, on a model of its kind
with random weights, few layers and small frames: `python -m tests.models.matrix
docs/backbones.md` makes this table, and `tests/models/test_families.py` tests the same. What
pictures should be like is what the tags of the real model say. Where patch attention is missing,
a run says so before it trains, and the notebooks leave it out.

{}

A head trains faster on features that were made once: see [performance.md](performance.md).

## Random weights, real clips

This says nothing about quality; it shows that files go the whole way. `videos.csv` has the
columns `file` and `caption`:

```sh
tvrkit data prepare own videos.csv --videos videos --out data/real
tvrkit evaluate zeroshot_msrvtt_b32 data.prepared=real backbone.pretrained=null --run real
tvrkit score "a woman is doing yoga" videos/yoga.mp4 --run real/zeroshot_msrvtt_b32/seed0
```

With 18 clips from the web (mp4, avi, mkv) and all of ViT-B/32, the second command prints
`weights: untrained` and R@1 5.6 in both directions, which is chance: one in 18.
`tests/training/test_given_weights.py` does the same with the tiny backbone.
"""


def main(page: str) -> None:
    """Write the page."""
    rows = []
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, Path(folder)))
    Path(page).write_text(PAGE.format(as_markdown(pd.DataFrame(rows))), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
