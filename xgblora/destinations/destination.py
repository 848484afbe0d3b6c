"""The contract of a destination: a program that is to load an adapter, and what it asks of one."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Adapter:
    """What is to be taken away.

    Attributes:
        rank: of the adapter, the same in every layer.
        layers: names of the adapted layers, as transformers calls them.
        base: folder or hub name of the base model, None where it has none.
        skeleton: the base model without numbers (on the meta device), None where its configuration is not to be had.
    """

    rank: int
    layers: tuple[str, ...]
    base: str | None
    skeleton: nn.Module | None

    @property
    def model_class(self) -> str | None:
        """ "LlamaForCausalLM"; None where it is not known."""
        return None if self.skeleton is None else type(self.skeleton).__name__


Rule = Callable[[Adapter], str]
"""Gives what it found in one line; raises InputError, in one line that says what would be right, where it is broken."""


@dataclass(frozen=True)
class Destination:
    """A program that loads adapters.

    Attributes:
        name: what `--for` calls it.
        rules: what it asks of an adapter, one a line.
    """

    name: str
    rules: tuple[Rule, ...]

    def check(self, adapter: Adapter) -> list[str]:
        """What each rule found.

        Raises:
            InputError: one is broken.
        """
        return [f"{self.name}: {rule(adapter)}" for rule in self.rules]
