"""A batch for the peers of full parameters, and a loss in fp64."""

import pytest
import torch


@pytest.fixture
def texts() -> dict[str, torch.Tensor]:
    """Five texts of seven tokens, some of them twice in a text, with two candidates each."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 20, (5, 7), generator=generator)
    ids[0, :3] = 9
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "options": torch.tensor([[5, 6]] * 5),
        "label": torch.tensor([0, 1, 0, 1, 1]),
    }


@pytest.fixture
def losses_of():
    """A function `(model, texts) -> [B]` in the model's own dtype."""

    def losses(model, texts) -> torch.Tensor:
        logits = model(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"]).logits[:, -1]
        scores = logits.log_softmax(dim=-1).gather(1, texts["options"])
        return torch.nn.functional.cross_entropy(scores, texts["label"], reduction="none")

    return losses
