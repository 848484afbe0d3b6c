"""`xgblora-compare` for those who run scripts: the same command, the same flags.

python scripts/compare_xgblora_lora.py --help
"""

from xgblora.cli.compare import main

if __name__ == "__main__":
    main()
