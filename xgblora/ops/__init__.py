"""The operations, usable from any project: `rank1_linear`, `perturb`, `update_`, `merge_rank1_`, `merge_noise_`.

Each is registered as `torch.ops.xgblora.*` with a schema, an eager reference, a shape function and, where it applies,
autograd. They know tensors; they know no model and no trainer.
"""

from xgblora.ops.choice import Choice, choose
from xgblora.ops.eager import operations
from xgblora.ops.low_rank_linear import low_rank_linear
from xgblora.ops.merge_noise import merge_noise_
from xgblora.ops.merge_rank1 import merge_rank1_, new_remainders
from xgblora.ops.noise import derive_seed
from xgblora.ops.perturb import perturb
from xgblora.ops.rank1_linear import rank1_linear
from xgblora.ops.row_dots import row_dots
from xgblora.ops.update import update_

__all__ = [
    "Choice",
    "choose",
    "derive_seed",
    "low_rank_linear",
    "merge_noise_",
    "merge_rank1_",
    "new_remainders",
    "operations",
    "perturb",
    "rank1_linear",
    "row_dots",
    "update_",
]
