"""Recipes: flags that belong together under one name. Each is a default that a flag on the command line overrides."""

from collections.abc import Mapping
from dataclasses import dataclass

from xgblora.errors import InputError
from xgblora.objectives.of_task import WITHOUT_GRADIENT
from xgblora.training.arguments import FLAGS
from xgblora.training.flag import Needs

_OF_ROUNDS = {Needs.ROUNDS, Needs.MERGES}


@dataclass(frozen=True)
class Recipe:
    """What a recipe sets.

    Attributes:
        flags: of `xgblora-train`, with their values.
        about: what it is for, for the help.
    """

    flags: dict[str, object]
    about: str


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


def flags_of_recipe(name: str, given: Mapping[str, object]) -> dict[str, object]:
    """What the recipe `name` sets in a run with the flags `given` and their values: what its method and objective take.

    Of full parameters that is nothing: a learning rate of adapters is 100 times theirs.

    Raises:
        InputError: there is no such recipe.
    """
    if name not in RECIPES:
        raise InputError(f"recipe={name}: must be one of {', '.join(RECIPES)}")
    if given.get("full"):
        return {}
    flags = dict(RECIPES[name].flags)
    if given.get("objective") in WITHOUT_GRADIENT:
        # there are no residuals
        flags["xgblora_reinit"] = "data"
    if given.get("trainer") == "population":
        # its rate is another, and each of its steps is a round
        del flags["learning_rate"]
    if given.get("lora") or given.get("trainer") == "population":
        flags = {flag: value for flag, value in flags.items() if _OF_ROUNDS.isdisjoint(FLAGS[flag].needs)}
    elif given.get("xgblora_adaptive_merge") or given.get("xgblora_merge_frequency"):
        # only one rule merges
        del flags["xgblora_steps_per_iteration"]
    return flags
