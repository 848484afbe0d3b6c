"""What a person sees: one logger for the terminal and `train.log`, and the blocks and tables printed through it."""

import io
import logging
import logging.handlers
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from xgblora.process_group import process_number

logger = logging.getLogger("xgblora")


class _TqdmHandler(logging.Handler):
    """Print above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def show_on_terminal() -> None:
    """Send the log to standard output, once; what its encoding lacks, as Windows' code pages may, comes out escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if process_number():
        # of several processes the first one speaks
        logger.addHandler(logging.NullHandler())
    elif not any(isinstance(handler, _TqdmHandler) for handler in logger.handlers):
        handler = _TqdmHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextmanager
def remembering_log() -> Iterator[logging.handlers.MemoryHandler]:
    """Keep the lines that are logged before it is certain that there will be a file for them, see `logging_to`."""
    early = logging.handlers.MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    with _handling(early):
        yield early


@contextmanager
def logging_to(path: Path, early: logging.handlers.MemoryHandler) -> Iterator[None]:
    """Copy the log to `path`, with the time, while the block runs; the lines in `early` come first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.removeHandler(early)
    early.setTarget(handler)
    early.flush()
    with _handling(handler):
        yield


@contextmanager
def _handling(handler: logging.Handler) -> Iterator[None]:
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def log_block(title: str, rows: list[tuple[str, object]]) -> None:
    """Log a titled block of `name: value` lines."""
    logger.info("")
    logger.info("--- %s %s", title, "-" * max(4, 72 - len(title)))
    for name, value in rows:
        logger.info("%s: %s", name, value)
    logger.info("-" * 77)


def log_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Log a table: the first column aligned left, the others right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in (header, tuple("-" * width for width in widths), *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        logger.info("  ".join(cells))
