#!/usr/bin/env bash
# A 4-bit layer of bitsandbytes computes something else after it was saved, on CPUs with AVX-512 in bf16.
#
# There the first forward repacks the weight (`_convert_weight_packed_for_cpu`) and transposes its scales. `state_dict()`
# puts the codes back (`_convert_weight_packed_for_cpu_inverse`), and the scales only where they are nested; the next
# forward transposes them again. Who saves a checkpoint between two forwards goes on with another model, and the
# checkpoint itself has the scales in another order.
#
# Seen with bitsandbytes 0.50.2, torch 2.13.0+cpu, Python 3.11:
#
#     bitsandbytes 0.50.2, AVX-512 in bf16: True
#     a forward before and one after state_dict(): they differ by 3.24e-01 of the largest output
#
# Exits with 1 if bitsandbytes no longer does this, or if the CPU has no such units.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install -q "torch==2.13.0" "numpy==2.4.6" "bitsandbytes==0.50.2"
"$folder/environment/bin/python" - <<'END'
import sys

import bitsandbytes
import torch
from bitsandbytes.functional import has_avx512bf16

print(f"bitsandbytes {bitsandbytes.__version__}, AVX-512 in bf16: {bool(has_avx512bf16())}")
torch.manual_seed(0)
plain = {"compress_statistics": False, "quant_type": "nf4"}
layer = bitsandbytes.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, **plain)
layer.weight = bitsandbytes.nn.Params4bit(torch.randn(64, 128), requires_grad=False, **plain)
layer = layer.to("cpu").eval()
x = torch.randn(3, 128)
with torch.no_grad():
    before = layer(x)
    layer.state_dict()
    after = layer(x)
difference = ((after - before).abs().max() / before.abs().max()).item()
print(f"a forward before and one after state_dict(): they differ by {difference:.2e} of the largest output")
sys.exit(0 if difference > 0.01 else 1)
END
