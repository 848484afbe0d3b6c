"""CTranslate2 converts the merged model and computes what it does."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import xgblora
from xgblora import demo
from xgblora.boosting.finish import finish

ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed (.[destinations])")


@pytest.mark.parametrize("name", ["the demonstration", "opt-mini", "stories260K"])
def test_logits_in_fp32(shared_model, randomise_adapters, tmp_path, name):
    folder = demo.flags()["model_name"] if name == "the demonstration" else shared_model(name)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Once upon a time there was a warm film")["input_ids"]
    with torch.no_grad():
        before = model(input_ids=torch.tensor([ids])).logits[0]
        adapters = xgblora.attach(model, alpha=2.0)
        randomise_adapters(adapters, std=0.02)
        finish(adapters, xgblora.Booster(adapters), step=1, epoch=1.0)
        merged = model(input_ids=torch.tensor([ids])).logits[0]
    xgblora.export_merged(model, tmp_path / "merged", tokenizer=tokenizer)
    ctranslate2.converters.TransformersConverter(str(tmp_path / "merged")).convert(str(tmp_path / "converted"))
    generator = ctranslate2.Generator(str(tmp_path / "converted"), compute_type="float32", intra_threads=1)
    found = torch.from_numpy(np.array(generator.forward_batch([tokenizer.convert_ids_to_tokens(ids)])))
    assert (found[0] - merged).abs().max() < 1e-4
    assert (merged - before).abs().max() > 0.01
