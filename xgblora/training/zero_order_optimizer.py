"""The zeroth-order step as a `torch.optim.Optimizer`, so that transformers' schedulers and checkpoints drive it."""

import torch

from xgblora.zo import ZeroOrder


class ZeroOrderOptimizer(torch.optim.Optimizer):
    """`step()` is `ZeroOrder.update` with the learning rate that the scheduler has set; it keeps no state."""

    def __init__(self, zo: ZeroOrder, lr: float):
        self._zo = zo
        super().__init__([{"params": [zo.adapters.arena.master]}], {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        self._zo.update(lr=self.param_groups[0]["lr"])
