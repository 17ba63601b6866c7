"""The ONNX example gives what torch gives, for batches of any size."""

import pytest

pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")


def test_both_towers(encoder, tmp_path):
    from examples.export_onnx import export

    assert export(encoder.method.backbone, tmp_path) < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"text.onnx", "frames.onnx"}
