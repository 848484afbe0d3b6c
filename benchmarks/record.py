"""The results file of a device, `benchmarks/results/<device>.csv`: a row for each way that a benchmark measured.

Rows are only ever appended, so that the file is the history of this device. `scripts/plot_benchmarks.py` draws it.
"""

import csv
import io
import os
import platform
import re
import time
from functools import cache
from pathlib import Path

import torch

from benchmarks.results_file import FOLDER, commit, slug
from xgblora.environment import versions

VERSIONS = ("xgblora", "torch", "triton", "transformers")
COLUMNS = (
    *("time", "commit", "device", "threads", "load", *VERSIONS),
    *("case", "way", "p20_seconds", "median_seconds", "p80_seconds", "ours_over_way"),
    *("share_of_bandwidth", "share_of_flops"),
)
_rows: list[dict] = []


def add(case: str, ours: str, measured: dict, info: dict[str, float], device: torch.device) -> None:
    """Keep the timings of `case` until the session ends; `measured` is way -> `Timing`."""
    for way, timing in measured.items():
        row = {
            **_circumstances(device),
            "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "",
            "case": case,
            "way": way,
            "p20_seconds": f"{timing.p20:.4g}",
            "median_seconds": f"{timing.median:.4g}",
            "p80_seconds": f"{timing.p80:.4g}",
            "ours_over_way": "" if way == ours else f"{info[f'ours_over_{way}']:.4g}",
        }
        if way == ours:
            row |= {name: f"{info[name]:.3f}" for name in ("share_of_bandwidth", "share_of_flops") if name in info}
        _rows.append(row)


def write(folder: Path = FOLDER) -> list[Path]:
    """Append what was kept to the files of its devices; the files."""
    files = []
    for device in dict.fromkeys(row["device"] for row in _rows):
        path = folder / f"{slug(device)}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
        if not path.exists():
            writer.writeheader()
        writer.writerows(row for row in _rows if row["device"] == device)
        with open(path, "a", encoding="utf-8", newline="") as file:
            file.write(text.getvalue())
        files.append(path)
    _rows.clear()
    return files


def device_name(device: torch.device) -> str:
    """The name that its maker gave the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", facts.read_text()) if facts.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine()


@cache
def _circumstances(device: torch.device) -> dict[str, str]:
    installed = versions()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "commit": commit(),
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        **{name: installed[name] or "" for name in VERSIONS},
    }
