#!/usr/bin/env bash
# torch's CPU generator draws from the low 32 bits of a seed alone.
#
# torch.manual_seed and Generator.manual_seed take any 64-bit seed, and initial_seed() gives all 64 bits back. Of two
# seeds that differ in their high 32 bits only, a CPU generator makes the same numbers, and nothing warns. Who derives
# the seeds of steps, directions or factors from a 64-bit number and tells them apart in its high bits draws one vector
# again and again. (A CUDA generator is another one; it was not tried.)
#
# Seen with torch 2.13.0+cpu, Python 3.11:
#
#     torch 2.13.0+cpu
#     seeds 5 and 4294967301: initial_seed 5 and 4294967301, 1000 of 1000 normals equal
#     seeds 0 and 8589934592: initial_seed 0 and 8589934592, 1000 of 1000 normals equal
#     seeds 5 and 6: initial_seed 5 and 6, 0 of 1000 normals equal
#
# Exits with 1 if torch no longer does this.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install -q "torch==2.13.0" "numpy==2.4.6"
"$folder/environment/bin/python" - <<'END'
import sys

import torch

print("torch", torch.__version__)
found = {}
for one, other in ((5, 5 + 2**32), (0, 2**33), (5, 6)):
    generators = [torch.Generator().manual_seed(seed) for seed in (one, other)]
    assert [generator.initial_seed() for generator in generators] == [one, other]
    first, second = (torch.randn(1000, generator=generator) for generator in generators)
    found[one, other] = int((first == second).sum())
    print(f"seeds {one} and {other}: initial_seed {one} and {other}, {found[one, other]} of 1000 normals equal")
sys.exit(0 if list(found.values()) == [1000, 1000, 0] else 1)
END
