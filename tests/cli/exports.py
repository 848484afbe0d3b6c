"""Looking at what `xgblora-export` left."""

import torch
from safetensors.torch import load_file


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(2, 30).unsqueeze(0)).logits.float()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines_of(ending):
    assert ending.status == 0, ending.errors
    assert ending.errors == []
    return ending.output.splitlines()
