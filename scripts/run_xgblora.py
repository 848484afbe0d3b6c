"""`xgblora-train` for those who run scripts: the same command, the same flags.

python scripts/run_xgblora.py --help
"""

from xgblora.cli.train import main

if __name__ == "__main__":
    main()
