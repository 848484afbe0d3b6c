"""`benchmarks` is not installed; it is imported from the root of the repository, after everything that is."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
