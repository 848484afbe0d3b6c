"""CTranslate2 converts the merged model and computes what it does."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed (.[destinations])")


@pytest.mark.parametrize("name", ["the demonstration", "opt-mini", "stories260K"])
def test_logits_in_fp32(merged_folder, tmp_path, name):
    folder = merged_folder(name)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Once upon a time there was a warm film")["input_ids"]
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids])).logits[0]
    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(tmp_path / "converted"))
    generator = ctranslate2.Generator(str(tmp_path / "converted"), compute_type="float32", intra_threads=1)
    found = torch.from_numpy(np.array(generator.forward_batch([tokenizer.convert_ids_to_tokens(ids)])))[0]
    assert (found - wanted).abs().max() < 1e-4
