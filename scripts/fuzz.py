"""Try 3,000 command lines and files of flags and 1,000 data files; in CI a few of each are tried, always the same ones.

python scripts/fuzz.py --inputs 3000
"""

import os
import sys
from argparse import ArgumentParser
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run tests/fuzz with as many inputs as were asked for; the exit status is pytest's."""
    import pytest

    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=3000, help="command lines and files of flags; a third data files")
    os.environ["XGBLORA_FUZZ"] = str(parser.parse_args().inputs)
    os.chdir(ROOT)
    sys.exit(pytest.main(["-q", "tests/fuzz", "-n", "0"]))


if __name__ == "__main__":
    main()
