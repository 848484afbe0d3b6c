"""Your own tasks: a YAML file says which columns make the prompt and what the answers are. See docs/tasks.md."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from xgblora.errors import InputError
from xgblora.settings_file import compose
from xgblora.tasks.metrics import CHOICE_METRICS, GENERATION_METRICS
from xgblora.tasks.row import did_you_mean, listed, spelling, text_of, texts_of, value_of
from xgblora.tasks.sample import Sample
from xgblora.tasks.task import Task
from xgblora.tasks.template import Template, columns_of, fill, joined

FIELDS = ("name", "data", "template", "label", "label_words", "candidates", "answer", "metric", "sfc_prompt")


def read_task_file(path: Path) -> Task:
    """The task that a file describes.

    Raises:
        InputError: the file cannot be read, or something in it is wrong; the message names file, line and field.
    """
    fields = _Fields(path)
    template = fields.template()
    if fields.kind() == "answer":
        to_sample = _answered(template, fields.text("answer"))
    elif fields.kind() == "candidates":
        to_sample = _chosen(template, fields.columns("candidates"), fields.text("label"), fields.sfc_prompt())
    else:
        words = fields.label_words()
        to_sample = Template(template, fields.text("label"), words, fields.sfc_prompt(), strips=True).sample
    generation = fields.kind() == "answer"
    return Task(
        fields.name(),
        to_sample,
        files=fields.data_files(),
        generation=generation,
        metrics=fields.metrics(GENERATION_METRICS if generation else CHOICE_METRICS),
    )


def _answered(template: str, answer: str) -> Callable[[dict, str], Sample]:
    def to_sample(row: Mapping, origin: str) -> Sample:
        answers = texts_of(row, answer, origin) if isinstance(row.get(answer), list) else [text_of(row, answer, origin)]
        if not all(answers):
            raise InputError(f"{origin}: the {answer} is empty")
        return Sample.of_answers(fill(template, row, origin, strips=True), answers, origin)

    return to_sample


def _chosen(
    template: str, columns: str | list[str], label: str, sfc_prompt: str | None
) -> Callable[[dict, str], Sample]:
    def to_sample(row: Mapping, origin: str) -> Sample:
        if isinstance(columns, str):
            given = candidates = texts_of(row, columns, origin)
        else:
            given = [row.get(column) for column in columns]
            candidates = [text_of(row, column, origin) for column in columns]
        prompt = fill(template, row, origin, strips=True)
        return Sample.of_choices(
            prompt,
            [joined(prompt, candidate) for candidate in candidates],
            _place(value_of(row, label, origin), candidates, given, f"{origin}: {label}"),
            origin,
            sfc_prompt=sfc_prompt,
            sfc_candidates=[] if sfc_prompt is None else [joined(sfc_prompt, candidate) for candidate in candidates],
        )

    return to_sample


def _place(label: object, candidates: list[str], given: list, where: str) -> int:
    """The place of the right one of `candidates`, given as `given`: `label` is its text or its number from 0.

    Raises:
        InputError: it is neither, or could mean two of them.
    """
    # a number is no text: among texts it can only be that of a place
    by_text = [
        place
        for place, (text, value) in enumerate(zip(candidates, given, strict=True))
        if label == text or (type(label) is type(value) and label == value)
    ]
    by_number = [place for place in range(len(candidates)) if spelling(label) == str(place)]
    meant = sorted({*by_text, *by_number})
    if not meant:
        raise InputError(f"{where}={label}: must be one of the {len(candidates)} candidates, or its number from 0")
    if len(meant) > 1:
        listed = " or ".join(f"number {place} ({candidates[place]})" for place in meant)
        raise InputError(
            f"{where}={label}: may be {listed}; in JSON, give candidates as texts, each another one, and the right one "
            "by its number, as a number"
        )
    return meant[0]


class _Fields:
    """The fields of a task file, each checked when it is asked for.

    Everything is read as text: label words such as Yes and no, which YAML would make true and false, stay words.
    """

    def __init__(self, path: Path):
        self._path = path
        self._values, self._lines = _read(path)
        for field in self._values:
            if field not in FIELDS:
                known = did_you_mean(field, FIELDS) or f"; the fields are {', '.join(FIELDS)}"
                raise self._error(field, f"unknown field{known}")

    def kind(self) -> str:
        """What the task has: "label_words", "candidates" or "answer"."""
        kinds = [field for field in ("label_words", "candidates", "answer") if field in self._values]
        if len(kinds) != 1:
            have = " and ".join(kinds) if kinds else "none of them"
            raise InputError(
                f"{self._path}: needs one of label_words (the same candidates for every row), candidates "
                f"(the row's own) or answer (generated), and has {have}"
            )
        for field in ("label", "sfc_prompt") if kinds == ["answer"] else ():
            if field in self._values:
                raise self._error(field, "is for tasks with candidates; this one has an answer")
        return kinds[0]

    def text(self, field: str) -> str:
        if field not in self._values:
            raise InputError(f"{self._path}: the field {field} is missing")
        value = self._values[field]
        if not isinstance(value, str):
            raise self._error(field, "must be a text")
        if not value.strip():
            raise self._error(field, "is empty")
        return value

    def name(self) -> str:
        """The task's name, which becomes part of the names of folders; that of the file if it gives none."""
        if "name" not in self._values:
            return self._path.stem
        if not re.fullmatch(r"[\w.-]+", self.text("name")):
            raise self._error("name", f"{self.text('name')!r} may have letters, digits and ._- only")
        return self.text("name")

    def template(self) -> str:
        text = self.text("template")
        try:
            columns = columns_of(text)
        except InputError as error:
            raise self._error("template", str(error)) from None
        if not columns:
            raise self._error("template", f'{text!r} names no column; write one in braces, as in "{{text}} It was"')
        return text

    def sfc_prompt(self) -> str | None:
        value = self._values.get("sfc_prompt")
        return value if value == "" or value is None else self.text("sfc_prompt")

    def columns(self, field: str) -> str | list[str]:
        value = self._values[field]
        if not isinstance(value, list):
            return self.text(field)
        if len(value) < 2 or not all(isinstance(column, str) for column in value):
            raise self._error(field, "must be a column that holds lists, or a list of two or more columns")
        return value

    def label_words(self) -> dict[str, str]:
        words = self._mapping("label_words")
        for value, word in words.items():
            if not isinstance(word, str) or not word.strip():
                raise self._error("label_words", f"the word for {value} must be a text")
        if len(set(words.values())) < 2:
            raise self._error("label_words", "must give two or more different words")
        return {spelling(value): word for value, word in words.items()}

    def data_files(self) -> dict[str, list[Path]] | None:
        if "data" not in self._values:
            return None
        if isinstance(self._values["data"], str):
            return {"train": [self._inside(self.text("data"))]}
        files = self._mapping("data")
        for split, file in files.items():
            if split not in ("train", "valid"):
                raise self._error("data", f"{split}: unknown split; the splits are train and valid")
            if not isinstance(file, str) or not file:
                raise self._error("data", f"{split} must be the path of a file")
        return {split: [self._inside(file)] for split, file in files.items()}

    def _inside(self, file: str) -> Path:
        """The path of a data file in the task file's folder: a task that came from elsewhere reads nothing else."""
        path, folder = self._path.parent / file, self._path.parent
        if "\0" in file or not path.resolve().is_relative_to(folder.resolve()):
            raise self._error(
                "data", f"{file!r} is outside of the task file's folder; give such a folder by --data_dir"
            )
        return path

    def metrics(self, known: Mapping) -> tuple[str, ...]:
        """The chosen metric first, then the others that such a task can have."""
        if "metric" not in self._values:
            return tuple(known)
        metric = self.text("metric")
        if metric not in known:
            raise self._error("metric", f"{metric}: a task with {self.kind()} is measured by {listed(list(known))}")
        return (metric, *(other for other in known if other != metric))

    def _mapping(self, field: str) -> dict:
        value = self._values[field]
        if not isinstance(value, dict) or not value:
            raise self._error(field, "must be a mapping, {name: value, ...}")
        return value

    def _error(self, field: str, said: str) -> InputError:
        return InputError(f"{self._path} line {self._lines[field]}: {field}: {said}")


def _read(path: Path) -> tuple[dict, dict[str, int]]:
    """The fields of the file, all as texts, lists and mappings; and the line of each."""
    node = compose(path)
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}: must be lines of the form `field: value`, with the fields {', '.join(FIELDS)}")
    return _plain(node, path), {key.value: key.start_mark.line + 1 for key, _ in node.value}


def _plain(node: yaml.Node, path: Path) -> str | list | dict:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(entry, path) for entry in node.value]
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{path} line {key.start_mark.line + 1}: what stands before a colon must be a text")
    return {key.value: _plain(value, path) for key, value in node.value}
