"""What is compared: the methods, those of a file of variants, and the flags that each run is given."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from xgblora.errors import InputError
from xgblora.settings_file import read_settings
from xgblora.training.arguments import FLAGS, XGBLoRAArguments
from xgblora.training.flag import Needs, needing
from xgblora.training.recipes import flags_of_recipe

# what the comparison decides for every run, and which of its own flags does it
SET_BY_THE_COMPARISON = {name: flag.in_comparison for name, flag in FLAGS.items() if flag.in_comparison}
# docs/comparison.md says on what they were chosen
OF_POPULATION = {"learning_rate": 0.03, "members": 20}
# what a comparison calls a flag of `xgblora-train` too
SPELLINGS = {"lora_rank": "lora_r"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Attributes:
        name: as `--methods` and the folders have it.
        boosts: XGBLoRA.
        trainer: "zo", "regular" or "population".
        flags: of `xgblora-train`, beyond those that all methods share.
        full: all parameters are trained, without adapters; else, and if it does not boost, plain LoRA.
        defaults: what it has of flags that mean another thing, or nothing, to the others. Variants and sweeps go before
            them, and so does what all methods share, if the flag means the same to them.
    """

    name: str
    boosts: bool
    trainer: str
    flags: dict[str, object] = field(default_factory=dict)
    full: bool = False
    defaults: dict[str, object] = field(default_factory=dict)

    @property
    def has_rounds(self) -> bool:
        """Whether a rule ends its rounds; a step of a population is a round by itself."""
        return self.boosts and self.trainer != "population"

    @property
    def has_gradient(self) -> bool:
        """Whether it trains by backpropagation, and not by forward passes alone."""
        return self.trainer == "regular"

    @property
    def lacks(self) -> set[Needs]:
        """What a run of it does without."""
        lacking = {
            Needs.ADAPTERS: self.full,
            Needs.RANK: self.full or self.boosts,
            Needs.ROUNDS: not self.has_rounds,
            Needs.MERGES: not self.has_rounds,
            Needs.ESTIMATE: self.trainer != "zo",
            Needs.POPULATION: self.trainer != "population",
            # a weight has one value at a time
            Needs.COPIES: self.full,
        }
        return {need for need, is_lacking in lacking.items() if is_lacking}

    def takes(self, flag: str) -> bool:
        """Whether `flag` makes a difference to this method."""
        return flag not in FLAGS or self.lacks.isdisjoint(FLAGS[flag].needs)

    def settings(self, common: dict[str, object], swept: dict[str, float]) -> dict[str, object]:
        """The flags that are this method's; of adapters alpha, rank and when they are merged are always among them.

        Args:
            common: `lora_alpha`, `lora_r`, `xgblora_steps_per_iteration` and `xgblora_merge_frequency` of all methods.
            swept: values of this run alone.

        Raises:
            InputError: the method has a recipe that there is not.
        """
        ours = {**self._of_recipe(), **self.flags, **swept}
        if self.full:
            return {"trainer": self.trainer, "full": True, **ours}
        settings = {"trainer": self.trainer, "xgblora": self.boosts, "lora": not self.boosts, **common, **ours}
        if self.boosts:
            settings["lora_r"] = 1
        if not self.has_rounds:
            never = {"xgblora_steps_per_iteration": 0, "xgblora_merge_frequency": 0}
            return {**settings, **never, **needing(XGBLoRAArguments, Needs.ROUNDS)}
        if str(settings["xgblora_steps_per_iteration"]) != "0" and "xgblora_merge_frequency" not in ours:
            settings["xgblora_merge_frequency"] = 0
        return settings

    def _of_recipe(self) -> dict[str, object]:
        """What a recipe of its own sets, which goes before what all methods share."""
        if "recipe" not in self.flags:
            return {}
        method = {"full": self.full, "lora": not self.boosts and not self.full, "trainer": self.trainer}
        return flags_of_recipe(str(self.flags["recipe"]), {**method, **self.flags})

    def shared(self, words: list[str]) -> list[str]:
        """The part of a command line for all methods that this one is given.

        Full parameters are given nothing of adapters, a population no estimate and no rate of other methods.
        """
        if not self.full and not self.defaults:
            return words
        kept, taken = [], True
        for word in words:
            if word.startswith("--"):
                flag = word.split("=")[0].lstrip("-").replace("-", "_")
                taken = self.takes(flag) and not self._means_another_thing(flag)
            kept += [word] if taken else []
        return kept

    def _means_another_thing(self, flag: str) -> bool:
        return flag in self.defaults and Needs.POPULATION not in FLAGS[flag].needs


METHODS = {
    method.name: method
    for method in (
        Method("lora_zo", boosts=False, trainer="zo"),
        Method("xgblora_zo", boosts=True, trainer="zo"),
        Method("lora_fo", boosts=False, trainer="regular"),
        Method("xgblora_fo", boosts=True, trainer="regular"),
        Method("mezo_full", boosts=False, trainer="zo", full=True),
        Method("population", boosts=True, trainer="population", defaults=OF_POPULATION),
    )
}
# MeZO's rates for full parameters are 100 times smaller than for adapters, and a population's are lengths of steps: at
# one shared rate one of two would diverge or stand still, so they are compared where they are asked for
UNLESS_NAMED = [name for name, method in METHODS.items() if not method.full and not method.defaults]


def read_variants(path: Path, known: Collection[str]) -> dict[str, Method]:
    """The variants in a YAML file: name -> `base: METHOD` and flags of `xgblora-train`.

    Args:
        path: the file.
        known: the names of those flags.

    Raises:
        InputError: the file is missing, or a variant in it is wrong; one line says which and why.
    """
    try:
        variants = read_settings(path)
    except InputError as error:
        raise InputError(f"variants={error}") from None
    if not isinstance(variants, dict) or not variants:
        raise InputError(f"variants={path}: must hold one `name:` or more, each with `base: METHOD` and flags below it")
    return {str(name): _variant(f"variants={path}: {name}", str(name), of, known) for name, of in variants.items()}


def _variant(where: str, name: str, flags: object, known: Collection[str]) -> Method:
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: a name is of letters, digits, '_', '-' and '.'")
    if name in METHODS:
        raise InputError(f"{where}: is a method already; choose another name")
    if not isinstance(flags, dict) or "base" not in flags:
        raise InputError(f"{where}: must have `base: METHOD`, one of {', '.join(METHODS)}")
    twice = [name for name, flag in SPELLINGS.items() if name in flags and flag in flags]
    if twice:
        raise InputError(f"{where}: {twice[0]} and {SPELLINGS[twice[0]]} are one flag; give one of them")
    flags = {SPELLINGS.get(flag, flag): value for flag, value in flags.items()}
    base = flags.pop("base")
    if base not in METHODS:
        raise InputError(f"{where}: base={base}: must be one of {', '.join(METHODS)}")
    for flag in map(str, flags):
        if flag in SET_BY_THE_COMPARISON:
            raise InputError(f"{where}: {flag} is set by the comparison and its base")
        if flag not in known:
            raise InputError(f"{where}: unknown flag {flag}")
        if not METHODS[base].takes(flag):
            raise InputError(f"{where}: {flag} makes no difference to {base}")
    empty = [flag for flag, value in flags.items() if value is None]
    if empty:
        raise InputError(f"{where}: {empty[0]} has no value")
    return replace(METHODS[base], name=name, flags=flags)


def choose(names: list[str] | None, variants: dict[str, Method]) -> list[Method]:
    """The methods of these names, in this order; without names those of `UNLESS_NAMED` and all variants.

    Raises:
        InputError: a name is unknown or given twice.
    """
    offered = {**METHODS, **variants}
    for name in names or ():
        if name not in offered:
            raise InputError(f"methods={name}: must be one of {', '.join(offered)}")
    return [offered[name] for name in _once("methods", names or [*UNLESS_NAMED, *variants])]


def choose_seeds(seeds: list[int]) -> list[int]:
    """`seeds`, if each is there once and can be one.

    Raises:
        InputError: a seed is given twice or out of range.
    """
    for seed in seeds:
        if not 0 <= seed < 1 << 32:
            raise InputError(f"seeds={seed}: must be from 0 to 4294967295")
    return _once("seeds", seeds)


def _once(flag: str, values: list) -> list:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise InputError(f"{flag}={twice[0]}: is given twice")
    return values
