"""`merge_rank1_` of all layers in one launch.

    W = round(W + (scale * b) * a)          three fp32 operations, each rounded once, none fused

The work is reading and writing the weights: 4 bytes an element of a 16-bit weight, 8 of fp32 ones and of 16-bit ones
with remainders, and nothing besides, since `a` and `b` of a tile come from the cache and random words are made in
registers. Eager code goes over every layer several times, in launches of its own: rounding a bf16 weight to nearest is
28 bytes an element (the product, the weight in fp32, their sum, each written and read again), and the other roundings
are more.

The layers stand in a table on the device, one column a layer. A program finds its layer by counting the layers that
begin at or before its tile, one load and one sum for up to `SEARCH` layers, where a binary search would wait for
memory seven times. A tile is a piece of some rows of the weight as it lies in memory: `a` and `b` are then one row and
one column of factors, and no element needs a division to know where it is. Rows much shorter than a tile's would leave
threads idle; no layer of a model has them.

Vectors of 16 bytes need all rows of a weight to start on 16 bytes. Addresses from a table tell the compiler nothing
about that, so the host looks: layers of which it holds go into a launch that is compiled for it, others into a second.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgblora.kernels.noise_numbers import Stream
from xgblora.kernels.philox import random_words
from xgblora.kernels.rounding import as_fp32, round_stochastically, round_to, round_with_remainder, running_sum
from xgblora.kernels.weight_storage import is_transposed, share_memory

# A tile: 8 KiB of 16-bit weights. A row of it is what a warp loads in one 16-byte vector a thread; 16 rows are 4 such
# vectors a thread and plane, all under way before the first is used.
BLOCK_R = 16
BLOCK_C = 256
WARPS = 4
SEARCH = 128

_ROUNDING_STREAM = tl.constexpr(int(Stream.ROUNDING))
_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _words_of_rows(seed, first_counter, BLOCK_C: tl.constexpr):
    """uint32 [R, BLOCK_C]: the random words of BLOCK_C elements from word 0 of `first_counter` [R] on.

    Two Philox calls a thread and row give eight neighbours, the vector of 16-bit weights that they round.
    """
    counter = first_counter[:, None] + 2 * tl.arange(0, BLOCK_C // 8)[None, :]
    v0, v1, v2, v3 = random_words(seed, counter, _ROUNDING_STREAM)
    v4, v5, v6, v7 = random_words(seed, counter + 1, _ROUNDING_STREAM)
    even = tl.join(tl.join(v0, v4), tl.join(v2, v6))
    odd = tl.join(tl.join(v1, v5), tl.join(v3, v7))
    return tl.reshape(tl.join(even, odd), (first_counter.shape[0], BLOCK_C))


# `layers` and the shapes in the table change from model to model: nothing is compiled anew for them
@triton.jit(do_not_specialize=["layers"], do_not_specialize_on_alignment=["table_ptr"])
def merge_rank1_fwd_kernel(
    table_ptr,
    scale,
    layers,
    DTYPE: tl.constexpr,
    ROUNDING: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SEARCH: tl.constexpr,
):
    """Program i merges tile i of all layers. `_launch` fills the table, int64 [11, layers].

    ALIGNED promises that weights, remainders and column factors start on 16 bytes, that rows do, and that the first
    element of a layer has a number that is a multiple of 4.
    """
    tile = tl.program_id(0)
    started = 0
    for first in range(0, layers, SEARCH):
        index = first + tl.arange(0, SEARCH)
        first_tiles = tl.load(table_ptr + index, mask=index < layers, other=0x7FFFFFFF)
        started += tl.sum((first_tiles <= tile).to(tl.int32))
    entry = table_ptr + (started - 1)
    own_tile = tile - tl.load(entry).to(tl.int32)
    weight_ptr = tl.load(entry + layers).to(tl.pointer_type(DTYPE))
    remainder_ptr = tl.load(entry + 2 * layers).to(tl.pointer_type(tl.int16))
    row_factor_ptr = tl.load(entry + 3 * layers).to(tl.pointer_type(tl.float32))
    column_factor_ptr = tl.load(entry + 4 * layers).to(tl.pointer_type(tl.float32))
    rows = tl.load(entry + 5 * layers)
    columns = tl.load(entry + 6 * layers)
    transposed = tl.load(entry + 7 * layers) == 1
    start = tl.load(entry + 8 * layers)
    seed = tl.load(entry + 9 * layers)
    across = tl.load(entry + 10 * layers).to(tl.int32)
    if ALIGNED:
        weight_ptr = tl.multiple_of(weight_ptr, 16)
        remainder_ptr = tl.multiple_of(remainder_ptr, 16)
        column_factor_ptr = tl.multiple_of(column_factor_ptr, 16)
        columns = tl.multiple_of(columns, 128 // DTYPE.primitive_bitwidth)

    row = (own_tile // across).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    first_column = (own_tile % across).to(tl.int64) * BLOCK_C
    row_start = row * columns
    number = start + row_start
    # [1, BLOCK_C]: the same columns in all rows, so that each of their factors is loaded once
    column = (first_column + tl.arange(0, BLOCK_C))[None, :]
    inside_row, inside_column = row < rows, column < columns
    if ROUNDING == "stochastic" and not ALIGNED:
        # [BLOCK_R, BLOCK_C]: rows begin at the number of a first word, so that here too four neighbours share a call
        column = column - (number & 3)[:, None]
        inside_column = (column >= 0) & (column < columns)
    inside = inside_row[:, None] & inside_column
    offset = row_start[:, None] + column

    # every load before the first use, so that all are under way together
    row_factor = tl.load(row_factor_ptr + row, mask=inside_row, other=0.0)[:, None]
    column_factor = tl.load(column_factor_ptr + column, mask=inside_column, other=0.0)
    weight = tl.load(weight_ptr + offset, mask=inside)
    if ROUNDING == "remainder":
        remainder = tl.load(remainder_ptr + offset, mask=inside)
    # the scale goes with b; times 1 is exact
    update = (row_factor * tl.where(transposed, 1.0, scale)) * (column_factor * tl.where(transposed, scale, 1.0))

    if ROUNDING == "remainder":
        weight, remainder = round_with_remainder(running_sum(weight, remainder) + update, DTYPE)
        tl.store(remainder_ptr + offset, remainder, mask=inside)
    elif ROUNDING == "stochastic":
        words = _words_of_rows(seed, (number >> 2) + (first_column >> 2), BLOCK_C)
        weight = round_stochastically(as_fp32(weight) + update, DTYPE, words)
    else:
        weight = round_to(as_fp32(weight) + update, DTYPE)
    tl.store(weight_ptr + offset, weight, mask=inside)


def merge_rank1_(
    weights: list[Tensor],
    a: list[Tensor],
    b: list[Tensor],
    remainders: list[Tensor],
    scale: float,
    rounding: str,
    seed: int,
) -> None:
    """Merge a rank-1 adapter into each weight, in place; arguments and bits as of `torch.ops.xgblora.merge_rank1_`.

    One launch for all weights of one dtype whose rows start on 16 bytes, which is all of a model, and one for those of
    which that does not hold. Weights that lie neither row by row nor column by column are merged in a copy, which is
    written back. Weights that share memory are merged one after the other, as the reference does. The table is copied
    from memory that is not pinned, so a call cannot be captured in a CUDA graph.

    Args:
        weights: [N_l, K_l] of fp32, bf16 or fp16, any strides, on one device.
        a: [K_l] of each weight.
        b: [N_l] of each weight.
        remainders: int16 [N_l, K_l] of each 16-bit weight; read with rounding "remainder" only.
        scale: alpha / rank.
        rounding: "nearest", "stochastic" or "remainder".
        seed: for "stochastic", a signed 64-bit integer.
    """
    layers, start = [], 0
    for index, weight in enumerate(weights):
        # 32-bit weights have nothing to round
        own_rounding = "nearest" if weight.dtype == torch.float32 else rounding
        plane = remainders[index] if own_rounding == "remainder" else None
        if weight.numel():
            layers.append(_Layer(weight, plane, a[index], b[index], own_rounding, start))
        start += weight.numel()
    for group in [[layer] for layer in layers] if share_memory(weights) else [layers]:
        _merge(group, scale, seed)


class _Layer:
    """One weight as the kernel takes it: a contiguous matrix in storage order, and the plane that lies as it does."""

    def __init__(self, weight: Tensor, plane: Tensor | None, a: Tensor, b: Tensor, rounding: str, start: int):
        self.transposed = is_transposed(weight)
        self.stored = [tensor.T if self.transposed else tensor for tensor in (weight, plane) if tensor is not None]
        self.rounding, self.start = rounding, start
        factors = a.float().contiguous(), b.float().contiguous()
        self.row_factor, self.column_factor = factors if self.transposed else reversed(factors)
        self.dense: list[Tensor] = []

    def gather(self) -> None:
        """Make `dense`: the matrices themselves where they are contiguous, else copies of them."""
        self.dense = [matrix.contiguous() for matrix in self.stored]

    def scatter(self) -> None:
        """Write copies back."""
        for target, source in zip(self.stored, self.dense, strict=True):
            if target.data_ptr() != source.data_ptr():
                target.copy_(source)

    def variant(self) -> tuple[torch.dtype, str, bool]:
        """What the kernel is compiled for: dtype, rounding and whether ALIGNED holds."""
        matrix = self.dense[0]
        starts = [tensor.data_ptr() for tensor in (*self.dense, self.column_factor)]
        aligned = all(byte % 16 == 0 for byte in (*starts, matrix.shape[1] * matrix.element_size()))
        if self.rounding == "stochastic":
            aligned = aligned and self.start % 4 == 0
        return matrix.dtype, self.rounding, aligned

    def tiles(self, aligned: bool) -> tuple[int, int]:
        """The number of tiles of a column and of a row."""
        rows, columns = self.dense[0].shape
        # the rows of the stochastic kernel begin up to 3 elements late
        late = 3 if self.rounding == "stochastic" and not aligned else 0
        return triton.cdiv(rows, BLOCK_R), triton.cdiv(columns + late, BLOCK_C)


def _merge(layers: list[_Layer], scale: float, seed: int) -> None:
    """Merge `layers`, which share no memory: one launch for each variant of the kernel."""
    variants: dict[tuple[torch.dtype, str, bool], list[_Layer]] = {}
    for layer in layers:
        layer.gather()
        variants.setdefault(layer.variant(), []).append(layer)
    for variant, group in variants.items():
        _launch(group, *variant, scale, seed)
    for layer in layers:
        layer.scatter()


def _launch(layers: list[_Layer], dtype: torch.dtype, rounding: str, aligned: bool, scale: float, seed: int) -> None:
    columns, tiles = [], 0
    for layer in layers:
        down, across = layer.tiles(aligned)
        matrix, plane = layer.dense[0], layer.dense[-1]
        pointers = [tensor.data_ptr() for tensor in (matrix, plane, layer.row_factor, layer.column_factor)]
        columns.append((tiles, *pointers, *matrix.shape, int(layer.transposed), layer.start, seed, across))
        tiles += down * across
    device = layers[0].dense[0].device
    table = torch.tensor(columns, dtype=torch.int64).T.contiguous().to(device, non_blocking=True)
    with torch.cuda.device_of(table):
        merge_rank1_fwd_kernel[(tiles,)](
            table,
            scale,
            len(layers),
            DTYPE=_DTYPES[dtype],
            ROUNDING=rounding,
            ALIGNED=aligned,
            BLOCK_R=BLOCK_R,
            BLOCK_C=BLOCK_C,
            SEARCH=SEARCH,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
