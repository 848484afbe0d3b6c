"""A model that reads words one by one, its losses, and texts for it: small enough to be computed by hand."""

import torch
import torch.nn.functional as F
from torch import nn

from xgblora.boosting import Samples

WORDS, PADDING = 11, 0


class Reader(nn.Module):
    """Two layers that read one input, a third over them, and output embeddings; no word sees another."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.words = nn.Embedding(WORDS, 6)
            self.left, self.right, self.up = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(10, 6)
            self.head = nn.Linear(6, WORDS, bias=False)
        self.words.weight.data[PADDING] = 50.0
        self.to(dtype)

    def forward(self, ids):
        x = self.words(ids)
        return self.head(x + self.up(torch.tanh(torch.cat((self.left(x), self.right(x)), dim=-1))))

    def get_output_embeddings(self):
        return self.head


def next_words(model, batch):
    """[B]: the loss of the word that comes after the last one of a text."""
    last = batch["attention_mask"].sum(dim=1) - 1
    logits = model(batch["input_ids"])[torch.arange(len(last)), last]
    return F.cross_entropy(logits.float(), batch["next"], reduction="none")


def one_of_two(model, batch):
    """[B]: likewise, where there are two words to choose from."""
    last = batch["attention_mask"].sum(dim=1) - 1
    logits = model(batch["input_ids"])[torch.arange(len(last)), last, 3:5]
    return F.cross_entropy(logits.float(), batch["next"] % 2, reduction="none")


def texts(more_padding: int = 0):
    """A function `(round, examples)` to batches of 4 texts of 2 to 6 words, and padding behind them."""

    def batches(round: int, examples: int) -> list[dict]:
        generator = torch.Generator().manual_seed(round)
        made = []
        for _ in range(examples // 4):
            ids = F.pad(torch.randint(1, WORDS, (4, 6), generator=generator), (0, more_padding))
            words = torch.randint(2, 7, (4, 1), generator=generator)
            mask = (torch.arange(6 + more_padding) < words).long()
            made.append(
                {
                    "input_ids": ids * mask + PADDING * (1 - mask),
                    "attention_mask": mask,
                    "next": torch.randint(1, WORDS, (4,), generator=generator),
                }
            )
        return made

    return batches


SAMPLES = Samples(next_words, texts())
