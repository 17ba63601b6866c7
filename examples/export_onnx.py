"""The two towers of a backbone as ONNX files with a batch of any size, for servers without torch.

    python -m examples.export_onnx tvrkit-tiny tvrkit out/

writes out/text.onnx (tokens (B, L) int64 -> words (B, L, D), sentence (B, D)) and out/frames.onnx
(frames (B, 3, S, S) float32, normalised -> features (B, D)), runs both beside torch, and prints the
largest difference. Needs `pip install 'tvrkit[onnx]'`.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from tvrkit.models.backbone import Backbone, create_backbone
from tvrkit.settings import BackboneConfig

TOLERANCE = 1e-3  # largest difference between torch and ONNX that is let through


class Text(nn.Module):
    """Words and sentence of tokens; 0 is padding."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.backbone.encode_text(tokens, tokens != 0)


class Frames(nn.Module):
    """Features of normalised frames."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, frames: Tensor) -> Tensor:
        return self.backbone.encode_frames(frames[:, None])[:, 0]


def export(backbone: Backbone, folder: Path) -> float:
    """Write both files; returns the largest difference to torch, over batches of 1, 2 and 5.

    Raises:
        ValueError: it is above `TOLERANCE`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size, differences = backbone.image_size, []
    texts = backbone.tokenizer(["a red circle falls", "two squares", "red", "一个圆", ""])
    frames = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0))
    for name, tower, inputs in (
        ("text", Text(backbone).eval(), texts),
        ("frames", Frames(backbone).eval(), frames),
    ):
        path, batch = folder / f"{name}.onnx", {0: torch.export.Dim.DYNAMIC}
        options = {"dynamo": True, "external_data": False, "verbose": False}
        torch.onnx.export(tower, (inputs[:2],), path, dynamic_shapes=(batch,), **options)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for count in (1, 2, 5):
            outputs = session.run(None, {session.get_inputs()[0].name: inputs[:count].numpy()})
            with torch.no_grad():
                made = tower(inputs[:count])
            expected = made if isinstance(made, tuple) else (made,)
            pairs = zip(outputs, expected, strict=True)
            differences += [np.abs(exported - other.numpy()).max() for exported, other in pairs]
    if max(differences) > TOLERANCE:
        raise ValueError(f"ONNX and torch differ by {max(differences):.2g}, more than {TOLERANCE}")
    return float(max(differences))


if __name__ == "__main__":
    name, pretrained, folder = sys.argv[1:]
    backbone = create_backbone(BackboneConfig(name, None if pretrained == "-" else pretrained))
    print(f"largest difference {export(backbone.eval(), Path(folder)):.2g}")
