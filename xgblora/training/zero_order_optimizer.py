"""The zeroth-order step as a `torch.optim.Optimizer`, so that transformers' schedulers and checkpoints drive it."""

import torch

from xgblora.zo import ZeroOrder


class ZeroOrderOptimizer(torch.optim.Optimizer):
    """`step()` is `ZeroOrder.update` with the learning rate that the scheduler has set.

    Its only state is the number of steps, from which the seeds of all directions follow.
    """

    def __init__(self, zo: ZeroOrder, lr: float):
        self._zo = zo
        super().__init__([{"params": [zo.adapters.arena.master]}], {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        self._zo.update(lr=self.param_groups[0]["lr"])

    def state_dict(self):
        return {**super().state_dict(), "step_index": self._zo.step_index}

    def load_state_dict(self, state_dict):
        state_dict = dict(state_dict)
        self._zo.step_index = state_dict.pop("step_index", self._zo.step_index)
        super().load_state_dict(state_dict)
