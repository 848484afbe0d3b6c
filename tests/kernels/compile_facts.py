"""Compile every kernel for GPUs that need not be there, and print what the binaries hold as JSON.

Run by test_compile.py in a process of its own: compiling needs the kernels undisturbed by the interpreter, and the
interpreter is switched on for a whole process.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import triton
import triton.backends.nvidia
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from xgblora.kernels import (
    by_row,
    column_sum,
    few_rows,
    fused_gemm,
    merge_noise,
    merge_rank1,
    perturb,
    philox,
    rank1_pass,
    row_dot,
    update,
)

ARCHITECTURES = (80, 90, 100)
CUOBJDUMP = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
NOISE = {"BLOCK": philox.BLOCK, "UNIT": 8}
ROW_DOT = {"BLOCK_M": row_dot.BLOCK_M, "BLOCK_K": row_dot.BLOCK_K}
PASS = {"BLOCK_M": rank1_pass.BLOCK_M, "BLOCK_N": rank1_pass.BLOCK_N}
BY_ROW_PASS = {"BLOCK_M": by_row.BLOCK_M, "BLOCK_N": by_row.BLOCK_N}
SUMS = {"CHUNK": column_sum.CHUNK, "BLOCK_M": column_sum.BLOCK_M, "BLOCK_N": column_sum.BLOCK_N}
MATVEC = {"BLOCK_N": 8, "BLOCK_K": 512, "HAS_BIAS": True}
FEW_ROWS = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 128, "HAS_BIAS": True}
GEMM = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "GROUP_M": 8, "HAS_BIAS": True}
GEMM_FP32 = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "GROUP_M": 8, "HAS_BIAS": True}
# the stride that is 1 is a constant of the kernel: that of k, or for a weight stored as [K, N] that of n
LAYOUTS = {"": {"weight_k_stride": 1}, " transposed": {"weight_n_stride": 1}}
TRANSPOSED_MATVEC = {**MATVEC, "BLOCK_N": few_rows.TRANSPOSED_BLOCK_N, "BLOCK_K": 128}
TRANSPOSED_FEW_ROWS = {**FEW_ROWS, "BLOCK_N": few_rows.TRANSPOSED_BLOCK_N, "BLOCK_K": 64}
MERGE = {"BLOCK_R": merge_rank1.BLOCK_R, "BLOCK_C": merge_rank1.BLOCK_C, "SEARCH": merge_rank1.SEARCH}
SUMMED = {"BLOCK_R": merge_noise.BLOCK_R, "BLOCK_C": merge_noise.BLOCK_C, "FIRST": True, "LAST": True}
IN_PARTS = {**SUMMED, "DTYPE": tl.float32, "ROUNDING": "nearest", "FIRST": False, "LAST": False}
SUMS_IN_FP32 = {"remainder_ptr": "i16", **dict.fromkeys(("sum_ptr", "row_factors_ptr", "column_factors_ptr"), "fp32")}
DTYPES = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
# the pointers that a launch gives as None
MISSING_MOMENTS = {
    "sgd": ("first_ptr", "second_ptr", "factors_ptr"),
    "sign": ("first_ptr", "second_ptr", "factors_ptr"),
    "momentum": ("second_ptr",),
    "adam": (),
}
# compiled for every architecture: what matrix instructions are fed with, and a kernel of two variants
EVERYWHERE = ("gemm fp16 groups", "gemm bf16 one group transposed", "few_rows bf16", "noise gaussian", "factors scaled")
FUSION = {"enable_fp_fusion": True}
NO_FUSION = {"enable_fp_fusion": False}


def variants():
    """(name, kernel, dtype of the pointers, dtypes of some of them, compile-time constants, options).

    Of a tuple of pointers it is their number.
    """
    for distribution in ("gaussian", "rademacher"):
        constants = {**NOISE, "DISTRIBUTION": distribution}
        yield f"noise {distribution}", philox.noise_fwd_kernel, "fp32", {}, constants, NO_FUSION
        for optimizer, absent in MISSING_MOMENTS.items():
            chosen = {**constants, **dict.fromkeys(absent), "OPTIMIZER": optimizer}
            yield f"update {distribution} {optimizer}", update.update_fwd_kernel, "fp32", {}, chosen, NO_FUSION
        for dtype in ("fp32", "bf16", "fp16"):
            pointers = {"live_ptr": dtype}
            yield f"perturb {distribution} {dtype}", perturb.perturb_fwd_kernel, "fp32", pointers, constants, NO_FUSION
    projections = {"t_ptr": "fp32", "u_ptr": "fp32"}
    for dtype in ("fp32", "bf16", "fp16"):
        partials = {**projections, "da_partial_ptr": "fp32", "db_partial_ptr": "fp32"}
        for adapters in (1, 3, row_dot.MAX_ADAPTERS):
            name = f"row_dots {dtype} of {adapters}"
            pointers = {**projections, "a_ptrs": adapters}
            yield name, row_dot.row_dots_fwd_kernel, dtype, pointers, ROW_DOT, FUSION
        yield f"row_dots {dtype} of both", row_dot.row_dots_bwd_kernel, dtype, projections, ROW_DOT, FUSION
        yield f"rank1_pass {dtype}", rank1_pass.rank1_pass_fwd_kernel, dtype, projections, PASS, FUSION
        yield f"by_row dots {dtype}", by_row.row_dots_by_row_fwd_kernel, dtype, projections, ROW_DOT, FUSION
        yield f"by_row pass {dtype}", by_row.rank1_pass_by_row_fwd_kernel, dtype, projections, BY_ROW_PASS, FUSION
        yield f"column_sums {dtype}", column_sum.column_sums_bwd_kernel, dtype, partials, SUMS, FUSION
        yield f"sum_chunks {dtype}", column_sum.sum_chunks_bwd_kernel, dtype, partials, {"BLOCK": 512}, FUSION
        # bf16 and fp16 differ in one instruction; of a transposed weight one of them will do
        for layout, strides in LAYOUTS.items() if dtype != "fp16" else (("", LAYOUTS[""]),):
            matvec = {**(TRANSPOSED_MATVEC if layout else MATVEC), **strides}
            yield f"matvec {dtype}{layout}", few_rows.rank1_matvec_fwd_kernel, dtype, {}, matvec, FUSION
            tile = {**(TRANSPOSED_FEW_ROWS if layout else FEW_ROWS), **strides}
            yield f"few_rows {dtype}{layout}", few_rows.rank1_few_rows_fwd_kernel, dtype, {}, tile, FUSION
            for one_group in (True, False):
                constants = {**(GEMM_FP32 if dtype == "fp32" else GEMM), **strides, "ONE_GROUP": one_group}
                name = f"gemm {dtype} {'one group' if one_group else 'groups'}{layout}"
                options = {**FUSION, "num_warps": 8, "num_stages": 3}
                yield name, fused_gemm.rank1_gemm_fwd_kernel, dtype, projections, constants, options
    for dtype, triton_dtype in DTYPES.items():
        for rounding in ("nearest",) if dtype == "fp32" else ("nearest", "stochastic", "remainder"):
            # what is not aligned differs in the loads and stores, which fp16 shares with bf16
            for aligned in (True,) if dtype == "fp16" else (True, False):
                constants = {**MERGE, "DTYPE": triton_dtype, "ROUNDING": rounding, "ALIGNED": aligned}
                name = f"merge {dtype} {rounding}{'' if aligned else ' misaligned'}"
                options = {**NO_FUSION, "num_warps": merge_rank1.WARPS}
                yield name, merge_rank1.merge_rank1_fwd_kernel, dtype, {}, constants, options
            constants = {**SUMMED, "DTYPE": triton_dtype, "ROUNDING": rounding}
            yield (
                f"summed {dtype} {rounding}",
                merge_noise.noise_sum_fwd_kernel,
                dtype,
                SUMS_IN_FP32,
                constants,
                options,
            )
    yield "summed in parts", merge_noise.noise_sum_fwd_kernel, "fp32", SUMS_IN_FP32, IN_PARTS, NO_FUSION
    for name, scales in (("factors plain", False), ("factors scaled", True)):
        constants = {"SCALES": scales, "BLOCK": merge_noise.BLOCK}
        yield name, merge_noise.factors_fwd_kernel, "fp32", {}, constants, NO_FUSION


def variants_for(architecture):
    """What is compiled for an architecture: each variant for one, in turn, and so each kernel for all of them.

    For all of them, the 74 variants took three times as long and said the same: what is counted differs between
    architectures in matrix instructions alone, and of 255 registers a thread none took more than 204.
    """
    turns = defaultdict(dict)
    for name, kernel, *rest in variants():
        # variants that are compared with each other, "... of 1" and "... of 3", are of one architecture
        turn = turns[kernel].setdefault(name.partition(" of ")[0], len(turns[kernel]))
        # one further for each kernel and each round, or dtypes would fall on one architecture each
        place = turn + turn // len(ARCHITECTURES) + list(turns).index(kernel)
        if name in EVERYWHERE or ARCHITECTURES[place % len(ARCHITECTURES)] == architecture:
            yield name, kernel, *rest


INTEGER_POINTERS = {"seed_ptr": "i64", "seeds_ptr": "i64", "table_ptr": "i64", "group_ptr": "i32"}
FLOATS = ("scale",)


def compile_kernel(kernel, dtype, pointers, constants, options, architecture):
    """Compile as a launch would with 16-byte aligned tensors and sizes that are multiples of 16."""
    names = kernel.arg_names
    pointers = {**INTEGER_POINTERS, **pointers}
    signature = {}
    for name in names:
        if name in constants:
            signature[name] = "constexpr"
        elif name == "a_ptrs":
            signature[name] = ("*" + dtype,) * pointers[name]
        elif name == "a_strides":
            signature[name] = ("i32",) * pointers["a_ptrs"]
        elif name.endswith("_ptr"):
            signature[name] = "*" + pointers.get(name, dtype)
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    unspecialised = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    unaligned = {parameter.name for parameter in kernel.params if parameter.do_not_specialize_on_alignment}
    aligned = [n for n in names if signature[n] not in ("constexpr", "fp32") and n not in unspecialised | unaligned]
    places = [(names.index(name), *place) for name in aligned for place in _places_in(signature[name])]
    attributes = {place: [["tt.divisibility", 16]] for place in places}
    indexed = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, indexed, attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def _places_in(kind):
    """Where the values of an argument lie in it: one of a plain argument, each of a tuple."""
    return [(place,) for place in range(len(kind))] if isinstance(kind, tuple) else [()]


def _reduced_layouts(intermediate):
    """The layouts of all tensors that are reduced, written out: they decide the order of the additions."""
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", intermediate, re.MULTILINE))
    reduced = re.findall(r"\"tt\.reduce\".*?\}\) : \(tensor<(\w+), (#\w+)>\)", intermediate, re.DOTALL)
    return [f"{shape} {layouts[name]}" for shape, name in reduced]


def facts_of(kernel, compiled):
    """What the PTX and the binary of one kernel hold."""
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {
        "kernel": kernel.__name__,
        # registers spilled to memory lie on the stack; so does every local array
        "stack": [int(size) for size in re.findall(r"STACK:(\d+)", usage)],
        "local": [int(size) for size in re.findall(r"LOCAL:(\d+)", usage)],
        "registers": [int(size) for size in re.findall(r"REG:(\d+)", usage)],
        "shared": compiled.metadata.shared,
        "matrix": sorted(set(re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", ptx))),
        # sm_100 has one instruction for two of them, `fma.rn.f32x2`
        "fma": sum(2 if packed else 1 for packed in re.findall(r"\bfma\.\w+(?:\.ftz)?\.f(?:32|64)(x2)?", ptx)),
        "wide_loads": len(re.findall(r"ld\.global\.v4\.b32", ptx)),
        "wide_stores": len(re.findall(r"st\.global\.v4\.b32", ptx)),
        "narrow_stores": len(re.findall(r"st\.global\.(?!v4\.b32)", ptx)),
        "reduced": _reduced_layouts(compiled.asm["ttgir"]),
        "flushes": len(re.findall(r"\.ftz\b", ptx)),
    }


def main():
    """Print {architecture: {variant: facts}}; the architectures come as arguments."""
    facts = {}
    for architecture in map(int, sys.argv[1:] or ARCHITECTURES):
        facts[architecture] = {
            name: facts_of(kernel, compile_kernel(kernel, *rest, architecture))
            for name, kernel, *rest in variants_for(architecture)
        }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
