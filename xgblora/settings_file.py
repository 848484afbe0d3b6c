"""YAML and JSON files that people write: read safely, and what is wrong in one is said in one line with its place.

Nothing in such a file makes an object of a class, and nothing grows: aliases, by which a few lines become gigabytes,
are refused, and so is a file that is larger than anybody writes.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from xgblora.errors import InputError
from xgblora.spelling import one_line

_LARGEST = 1 << 18
_DEEPEST = 50
# half of a character beyond the first 65,536
_HALF = re.compile("[\ud800-\udfff]")


def read_settings(path: Path) -> Any:
    """What a file holds: JSON if its name ends in .json, else YAML; mappings, lists, texts, numbers, dates, None.

    Raises:
        InputError: it is missing, too large, or cannot be read; an entry is there twice.
    """
    text = _text_of(path)
    if path.suffix.lower() == ".json":
        return _of_json(text, path) if text.strip() else None
    node = _composed(text, path)
    if node is None:
        return None
    try:
        return yaml.SafeLoader("").construct_document(node)
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, RecursionError) as error:
        # a date in month 13, a mapping as the name of an entry
        raise _refusal(path, error) from None


def compose(path: Path) -> yaml.Node | None:
    """The nodes of a YAML file, each scalar with its text and its line; None if it is empty. Raises as above."""
    return _composed(_text_of(path), path)


class _Loader(yaml.SafeLoader):
    """Composes nodes without aliases, with each entry of a mapping once, and texts that are whole characters."""

    def fetch_flow_collection_start(self, TokenClass):
        # each bracket looks at all that are open: 4,000 of them take a minute
        if self.flow_level >= _DEEPEST:
            raise yaml.MarkedYAMLError(problem="brackets in brackets without end", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="an alias (*) is not taken here; write it out", problem_mark=mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor):
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node

    def compose_scalar_node(self, anchor):
        node = super().compose_scalar_node(anchor)
        if _HALF.search(node.value):
            try:
                # as JSON spells characters beyond the first 65,536: both halves
                node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                problem = "a text has half of a surrogate pair"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
        return node


def _composed(text: str, path: Path) -> yaml.Node | None:
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _refusal(path, error) from None
    finally:
        if loader is not None:
            loader.dispose()


def _of_json(text: str, path: Path) -> Any:
    try:
        content = json.loads(text, object_pairs_hook=_each_once)
        json.dumps(content, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {error.lineno}: is no JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({one_line(error)})") from None
    return content


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return entries


def _refusal(path: Path, error: Exception) -> InputError:
    mark = getattr(error, "problem_mark", None)
    line = f" line {mark.line + 1}" if mark else ""
    return InputError(f"{path}{line}: is no YAML ({(getattr(error, 'problem', None) or one_line(error))[:200]})")


def _text_of(path: Path) -> str:
    try:
        if not path.is_file():
            raise InputError(f"{path}: there is no such file")
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path}: is larger than {_LARGEST >> 10} KiB, which no file of settings is")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
