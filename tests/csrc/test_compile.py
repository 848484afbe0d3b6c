"""What nvcc makes of the merge kernel, for a GPU that need not be there: no spills, wide accesses, nothing fused."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ARCHITECTURE = 90


@pytest.fixture(scope="module")
def compiled(build, build_extension, tmp_path_factory):
    """A cubin of merge.cu and the cuobjdump to read it with: that of CUDA, or the one that Triton brings."""
    import os

    try:
        compiler = build_extension.ask_compiler(build_extension.find_nvcc(os.environ))
    except build.BuildError as error:
        pytest.skip(f"needs nvcc: {error}")
    cuobjdump = shutil.which("cuobjdump", path=str(compiler.path.parent)) or shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if cuobjdump is None and triton is not None:
        cuobjdump = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if cuobjdump is None:
        pytest.skip("needs cuobjdump")
    cubin = tmp_path_factory.mktemp("nvcc") / "merge.cubin"
    plan = build_extension.Plan(compiler, (ARCHITECTURE,))
    # the flags of the build, without what makes a library of it
    command = build_extension.compile_command(plan, [], cubin)
    flags = [word for word in command if word in ("-O3", "-std=c++17", "--fmad=false")]
    source = str(build.SOURCE / "merge.cu")
    subprocess.run(
        [compiler.path, "-cubin", f"-arch=sm_{ARCHITECTURE}", *flags, source, "-o", cubin],
        check=True,
        capture_output=True,
    )
    return cubin, cuobjdump


def read(compiled, option: str) -> str:
    cubin, cuobjdump = compiled
    return subprocess.run([cuobjdump, option, cubin], check=True, capture_output=True, text=True).stdout


def kernels(text: str) -> dict[str, str]:
    """The part of a listing that belongs to each kernel, by its rounding's number."""
    parts = re.split(r"Function\s*:?\s*(?=\S*merge_rank1_kernel)", text)[1:]
    return {re.search(r"RoundingE(\d)", part).group(1): part for part in parts}


def test_nothing_is_spilled_or_kept_in_local_memory(compiled):
    usage = kernels(read(compiled, "-res-usage"))
    assert set(usage) == {"0", "1", "2"}
    for rounding, text in usage.items():
        facts = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
        assert facts["STACK"] == facts["LOCAL"] == 0, (rounding, facts)
        # three blocks of 256 threads share 65,536 registers
        assert 0 < facts["REG"] <= 80, (rounding, facts)


def test_weights_move_in_16_bytes_and_nothing_is_fused(compiled):
    listings = kernels(read(compiled, "-sass"))
    assert set(listings) == {"0", "1", "2"}
    for rounding, listing in listings.items():
        # .EF: evicted first, so these are the weights; .CONSTANT: through the read-only cache, the factors
        assert re.search(r"LDG\.E\.EF\.128", listing), rounding
        assert re.search(r"STG\.E\.EF\.128", listing), rounding
        assert re.search(r"LDG\.E\.128\.CONSTANT", listing), rounding
        assert "FMUL" in listing and "FADD" in listing
        assert not re.search(r"\b[FDH]FMA", listing), rounding
        assert not re.search(r"\b(LDL|STL)\b", listing), rounding
