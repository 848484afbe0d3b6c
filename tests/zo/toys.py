"""Losses an example of a toy and of a language model, and batches and steps of the toy."""

import torch
import torch.nn.functional as F
from torch import nn


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 1)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))).squeeze(-1)


def squared_errors(model, batch):
    return (model(batch["x"]) - batch["y"]).square()


def toy_batch(examples=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(examples, 6, generator=generator), "y": torch.randn(examples, generator=generator)}


def take(zo, count=6, examples=8):
    return torch.stack([zo.step(toy_batch(examples, seed)).loss for seed in range(count)])


def next_token_losses(model, batch):
    """One loss an example: the mean over its own tokens."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    losses = F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
    wanted = batch["attention_mask"][:, 1:]
    return (losses * wanted).sum(1) / wanted.sum(1)
