"""What the kernels compile to, for GPUs that need not be there: no spills, matrix instructions, no stray fusion."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")

MATRIX_INSTRUCTION = {"80": "mma.sync", "90": "wgmma.mma_async", "100": "tcgen05.mma"}


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """{architecture: {variant: facts}} of every kernel, compiled side by side, in processes without an interpreter.

    A variant is compiled for one of the architectures, in turn.
    """
    script = Path(__file__).with_name("compile_facts.py")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    processes = [
        subprocess.Popen([sys.executable, script, architecture], **pipes) for architecture in MATRIX_INSTRUCTION
    ]
    found = {}
    for process in processes:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        found |= json.loads(output)
    return found


def _variants(facts, *prefixes):
    return [
        (architecture, name, found)
        for architecture, variants in facts.items()
        for name, found in variants.items()
        if name.startswith(prefixes or "")
    ]


def test_every_kernel_compiles_for_every_architecture(facts):
    sources = [path.read_text() for path in (Path(__file__).parent.parent.parent / "kernels").glob("*.py")]
    kernels = {name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE)}
    assert set(facts) == set(MATRIX_INSTRUCTION)
    for architecture, variants in facts.items():
        assert {found["kernel"] for found in variants.values()} == kernels, architecture


def test_every_variant_compiles(facts):
    assert len({name for variants in facts.values() for name in variants}) == 84


def test_nothing_is_spilled_or_kept_in_local_memory(facts):
    for architecture, name, found in _variants(facts):
        assert found["registers"], (architecture, name)
        # ptxas of Triton 3.6 keeps one address on the stack where 3.9's takes a few registers more
        assert sum(found["stack"] + found["local"]) <= 8, (architecture, name)


def test_noise_and_merges_are_made_without_fused_multiply_adds(facts):
    for architecture, name, found in _variants(facts, "noise", "perturb", "update", "merge", "summed", "factors"):
        assert found["fma"] == 0, (architecture, name)


def test_noise_is_stored_in_16_byte_vectors(facts):
    for architecture, name, found in _variants(facts, "noise", "perturb", "update"):
        assert found["wide_stores"] > 0, (architecture, name)


def test_updates_and_merges_flush_no_subnormal_number(facts):
    for architecture, name, found in _variants(facts, "update", "merge", "summed"):
        assert found["flushes"] == 0, (architecture, name)


def test_aligned_merges_move_16_bytes_at_a_time(facts):
    elements = 16 * 256 // 128  # of a thread
    for architecture, name, found in _variants(facts, "merge"):
        if name.endswith("misaligned"):
            continue
        vectors = elements // (4 if "fp32" in name else 8) * (2 if "remainder" in name else 1)
        assert found["wide_stores"] == vectors, (architecture, name)
        assert found["wide_loads"] >= vectors, (architecture, name)
        assert found["narrow_stores"] == 0, (architecture, name)


def test_aligned_merges_exchange_no_more_than_a_row_between_threads(facts):
    for architecture, name, found in _variants(facts, "merge"):
        # the fp32 factors of the columns; a tile of anything would be 8 KiB and many barriers
        assert name.endswith("misaligned") or found["shared"] <= 1024, (architecture, name)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_dots_of_an_adapter_are_added_in_one_order_whatever_stands_beside_it(facts, dtype):
    (variants,) = (variants for variants in facts.values() if f"row_dots {dtype} of 1" in variants)
    alone = variants[f"row_dots {dtype} of 1"]
    assert len(alone["reduced"]) == 1
    for adapters in (3, 4):
        together = variants[f"row_dots {dtype} of {adapters}"]
        assert together["reduced"] == alone["reduced"] * adapters
        assert together["fma"] == alone["fma"] * adapters


def test_gemms_use_matrix_instructions(facts):
    for architecture, instruction in MATRIX_INSTRUCTION.items():
        variants = {name: found for name, found in facts[architecture].items() if re.match(r"gemm (bf16|fp16)", name)}
        assert {name.endswith("transposed") for name in variants} == {True, False}
        for name, found in variants.items():
            assert instruction in found["matrix"], (architecture, name)
    few_rows = _variants(facts, "few_rows bf16", "few_rows fp16")
    assert {architecture for architecture, _, _ in few_rows} == set(facts)
    for architecture, name, found in few_rows:
        assert "mma.sync" in found["matrix"], (architecture, name)


def test_fp32_stays_fp32(facts):
    # matrix instructions on fp32 would be tf32, ten bits of mantissa
    for architecture, name, found in _variants(facts, "gemm fp32", "few_rows fp32"):
        assert found["matrix"] == [], (architecture, name)
