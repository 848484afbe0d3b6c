"""Recipes: flags that belong together under one name. Each is a default that a flag on the command line overrides."""

from collections.abc import Collection
from dataclasses import dataclass

from xgblora.errors import InputError
from xgblora.objectives.of_task import WITHOUT_GRADIENT
from xgblora.training.arguments import FLAGS
from xgblora.training.flag import OF_ADAPTERS, Needs


@dataclass(frozen=True)
class Recipe:
    """What a recipe sets.

    Attributes:
        flags: of `xgblora-train`, with their values.
        about: what it is for, for the help.
    """

    flags: dict[str, object]
    about: str

    def without(self, *needs: Needs) -> dict[str, object]:
        """Its flags, except those that need something of `needs`."""
        return {name: value for name, value in self.flags.items() if set(needs).isdisjoint(FLAGS[name].needs)}


RECIPES = {
    # docs/comparison.md measures it, and what each part gives
    "boost": Recipe(
        {
            "target_modules": ["all-linear"],
            "xgblora_layers": "0.5:1.0",
            "xgblora_reinit": "residual",
            "xgblora_steps_per_iteration": 50,
            "xgblora_merge_frequency": 0,
            "learning_rate": 2e-4,
        },
        "rounds of 50 steps that start at the residuals, on all linear layers of the upper half",
    ),
}


def flags_of_recipe(name: str, given: Collection[str], objective: str | None = None) -> dict[str, object]:
    """What the recipe `name` sets in a run with the flags `given`: only what the run's method and objective take.

    Raises:
        InputError: there is no such recipe.
    """
    if name not in RECIPES:
        raise InputError(f"recipe={name}: must be one of {', '.join(RECIPES)}")
    if "full" in given:
        return RECIPES[name].without(*OF_ADAPTERS)
    if "lora" in given:
        return RECIPES[name].without(Needs.ROUNDS, Needs.MERGES)
    flags = dict(RECIPES[name].flags)
    if objective in WITHOUT_GRADIENT:
        # there are no residuals
        flags["xgblora_reinit"] = "data"
    rules = {"xgblora_adaptive_merge", "xgblora_merge_frequency"} & set(given)
    # only one rule merges
    return {flag: value for flag, value in flags.items() if not (rules and flag == "xgblora_steps_per_iteration")}
