"""What a population is given for its steps, so that it takes as many forwards as the methods beside it.

A zeroth-order step runs its batch twice, a population's once for each member. At one number of steps the population
would have many times the forwards; so its steps, and those between its evaluations, are fewer by as much.
"""

from collections.abc import Collection

from xgblora.errors import InputError
from xgblora.training.arguments import XGBLoRAArguments

_EXACT, _ABOUT = ("max_steps", "eval_steps"), ("save_steps", "warmup_steps")


def steps_of_population(args: XGBLoRAArguments, forwards: int, own: Collection[str] = ()) -> dict[str, float]:
    """The flags that count steps, with the values of a population's run.

    Args:
        args: of the run, its steps as the others count them.
        forwards: of a step of the others.
        own: flags that are meant for this run, and stay.

    Raises:
        InputError: the forwards of a run, or those between two evaluations, are no whole number of its steps.
    """
    flags: dict[str, float] = {}
    for name in (*_EXACT, *_ABOUT):
        value = getattr(args, name)
        # a share of all steps is the same share of fewer
        if name not in own and value is not None and value >= 1:
            flags[name] = _fewer(name, value, args.members, forwards)
    if args.max_steps <= 0 and "num_train_epochs" not in own:
        flags["num_train_epochs"] = args.num_train_epochs * forwards / args.members
    return flags


def _fewer(name: str, value: float, members: int, forwards: int) -> int:
    steps, rest = divmod(value * forwards, members)
    if rest and name in _EXACT:
        raise InputError(
            f"members={members}: {name}={value:g} are {value * forwards:g} forwards, {forwards} a step, and no whole "
            f"number of steps of {members}; choose members that divide them"
        )
    return max(1, int(steps))
