"""OpenVINO and onnxruntime: the merged model in fp32 is right, and what bfloat16 does there is what the export says."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

IDS = torch.arange(4, 20).unsqueeze(0)


@pytest.fixture
def merged(merged_folder, logits_only):
    """A function `(name, dtype)`: the merged model as it is read back, and its logits fp32."""

    def load(name, dtype=torch.float32):
        model = logits_only(AutoModelForCausalLM.from_pretrained(merged_folder(name, dtype), dtype="auto")).eval()
        with torch.no_grad():
            return model, model(IDS).float()

    return load


def in_openvino(model):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed (.[destinations])")
    graph = openvino.convert_model(torch.export.export(model, (IDS,)))
    compiled = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(np.asarray(compiled(IDS.numpy())[0]).astype(np.float32))


def in_onnxruntime(model, folder):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (.[destinations])")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (.[destinations])")
    torch.onnx.export(model, (IDS,), folder / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: IDS.numpy()})
    return torch.from_numpy(np.asarray(found).astype(np.float32))


@pytest.mark.parametrize("name", ["the demonstration", "opt-mini", "stories260K"])
def test_openvino_in_fp32(merged, name):
    model, wanted = merged(name)
    assert (in_openvino(model) - wanted).abs().max() < 1e-4


def test_openvino_reads_bfloat16_as_something_else(merged):
    model, wanted = merged("stories260K", torch.bfloat16)
    assert (in_openvino(model) - wanted).abs().max() > 1


@pytest.mark.parametrize("name", ["the demonstration", "opt-mini", "stories260K"])
def test_onnxruntime_in_fp32(merged, tmp_path, name):
    model, wanted = merged(name)
    assert (in_onnxruntime(model, tmp_path) - wanted).abs().max() < 1e-4


def test_onnxruntime_refuses_bfloat16_on_a_cpu(merged, tmp_path):
    model, _ = merged("stories260K", torch.bfloat16)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        in_onnxruntime(model, tmp_path)
