"""An objective of your own that has no gradient: a place in a ranking.

    python examples/own_objective.py

The model that ships with the package is to put one word of its vocabulary first. The loss of a text is the logarithm of
how many words are likelier, which is a count: backpropagation has nothing to follow, and losses are enough.
"""

import torch
from transformers import AutoModelForCausalLM

import xgblora
from xgblora import demo

WORD, TEXTS, LENGTH = 7, 8, 8
STEPS, STEPS_OF_A_ROUND = 30, 10


def objective(model, batch):
    """Losses [B]: log(1 + words that are likelier than WORD)."""
    logits = model(**batch).logits[:, -1]
    return (logits > logits[:, WORD, None]).sum(dim=1).float().log1p()


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(demo.flags()["model_name"])
    words = torch.randint(5, 400, (TEXTS, LENGTH), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": words}
    adapters = xgblora.attach(model, "all-linear", alpha=16.0, seed=0)
    # a count changes in steps, so the two places must lie well apart
    zo = xgblora.ZeroOrder(adapters, objective, eps=2e-2, lr=2e-3, directions=2)
    booster = xgblora.Booster(adapters)
    with torch.no_grad():
        print(f"before: {objective(model, batch).expm1().mean():.0f} words are likelier")
        for step in range(1, STEPS + 1):
            zo.step(batch)
            if step % STEPS_OF_A_ROUND == 0:
                booster.merge(step=step)
                print(f"round {len(booster.boosters)}: {objective(model, batch).expm1().mean():.0f}")


if __name__ == "__main__":
    main()
