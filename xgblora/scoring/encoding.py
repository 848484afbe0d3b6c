"""From a sample to token ids: the sequences to run, and which of their rows predict which option tokens.

An option's last token is only ever a target, so it is not run; candidates whose remaining tokens agree share one
sequence. SST-2's two one-word candidates thus cost one sequence without their last token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from transformers import PreTrainedTokenizerBase

from xgblora.errors import InputError
from xgblora.scoring.vocabulary import first_id
from xgblora.tasks.sample import Sample


@dataclass(frozen=True)
class EncodedExample:
    """A sample in token ids.

    Attributes:
        sequences: the token ids to run, each sequence once.
        rows: the positions (sequence, index) whose hidden state predicts an option token, each once.
        options: for each candidate, a pair (index into `rows`, token id) for each of its option tokens.
        label: index of the right candidate.
    """

    sequences: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[int, int], ...]
    options: tuple[tuple[tuple[int, int], ...], ...]
    label: int

    def __len__(self) -> int:
        """Length of the longest sequence."""
        return max(len(sequence) for sequence in self.sequences)

    @property
    def ids(self) -> set[int]:
        """All token ids in it."""
        return {*chain.from_iterable(self.sequences), *(token for option in self.options for _, token in option)}


def encode(
    sample: Sample,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    only_right: bool = False,
    whole_text: bool = False,
) -> EncodedExample:
    """Encode a sample; arguments and errors as of `encode_all`."""
    return encode_all([sample], tokenizer, max_length=max_length, only_right=only_right, whole_text=whole_text)[0]


def encode_all(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    only_right: bool = False,
    whole_text: bool = False,
) -> list[EncodedExample]:
    """Encode samples; a fast tokenizer gets all their texts at once, and so uses all cores.

    Args:
        samples: the samples.
        tokenizer: any tokenizer; a fast one gives the option's span by character offsets.
        max_length: longer texts lose tokens at their beginning, never the first one if it is a special token.
        only_right: encode the right candidate alone (for the loss of the right option).
        whole_text: let the first option be the right text, prompt and all, from its second token on (for the loss of
            language modelling). The candidates come behind it, without it if `only_right`.

    A text that begins with its option gets BOS or EOS in front, which predicts the option's first token.

    Raises:
        InputError: an option is empty after tokenization, or does not fit into `max_length`; or there is nothing that
            predicts its first token.
    """
    texts = [[sample.candidates[sample.label]] if only_right else sample.candidates for sample in samples]
    asked = [(sample.prompt, text) for sample, of_one in zip(samples, texts, strict=True) for text in of_one]
    starts = iter(option_starts(tokenizer, asked))
    # transformers makes this list anew at each look, a quarter of the time of encoding SST-2
    special, first = frozenset(tokenizer.all_special_ids), first_id(tokenizer)
    encoded = []
    for sample, of_one in zip(samples, texts, strict=True):
        begun = [_begun(*next(starts), first, sample.origin) for _ in of_one]
        encoded.append(_encoded(sample, of_one, begun, special, max_length, only_right, whole_text))
    return encoded


def _begun(ids: list[int], start: int, first: int | None, origin: str) -> tuple[list[int], int]:
    """Token ids and the beginning of their option, which is not the first of them."""
    if start or not ids:
        return ids, start
    if first is None:
        raise InputError(
            f"{origin}: nothing stands before the answer, and the tokenizer has neither BOS nor EOS to predict it from"
        )
    return [first, *ids], 1


def _encoded(
    sample: Sample,
    texts: Sequence[str],
    starts: list[tuple[list[int], int]],
    special: frozenset[int],
    max_length: int,
    only_right: bool,
    whole_text: bool,
) -> EncodedExample:
    """The example of `sample`, whose `texts` have these token ids and begin their options at these tokens."""
    encodings = []
    for text, (ids, start) in zip(texts, starts, strict=True):
        if start == len(ids):
            raise InputError(f"{sample.origin}: the option {text[len(sample.prompt) :]!r} is empty after tokenization")
        encodings.append(shortened(ids, start, special, max_length, sample.origin))
    label = 0 if only_right else sample.label
    if whole_text:
        ids, _ = encodings[label]
        encodings, label = ([(ids, 1)], 0) if only_right else ([(ids, 1), *encodings], label + 1)
    sequences = _unique_sequences([ids[:-1] for ids, _ in encodings])
    rows: dict[tuple[int, int], int] = {}
    options = []
    for ids, start in encodings:
        sequence = next(i for i, s in enumerate(sequences) if s[: len(ids) - 1] == tuple(ids[:-1]))
        options.append(tuple((rows.setdefault((sequence, i - 1), len(rows)), ids[i]) for i in range(start, len(ids))))
    return EncodedExample(sequences, tuple(rows), tuple(options), label)


def refuse_same_tokens(sample: Sample, example: EncodedExample, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError if a wrong candidate of `example` has the tokens of the right one, such as an unknown token.

    Args:
        sample: what `example` was made of, with all candidates or the right one alone.
    """
    # the whole text, if there is one, is in front of the candidates
    options = example.options[-len(sample.candidates) :]
    if len(options) < len(sample.candidates):
        return
    for place, option in enumerate(options):
        if option == options[sample.label] and place not in sample.right:
            first, second = (sample.candidates[one][len(sample.prompt) :] for one in (sample.label, place))
            tokens = " ".join(map(str, tokenizer.convert_ids_to_tokens([token for _, token in option])))
            raise InputError(
                f"{sample.origin}: the candidates {first!r} and {second!r} cannot be told apart, both are {tokens} to "
                "the tokenizer; choose other words"
            )


def option_start(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> tuple[list[int], int]:
    """Token ids of `text` and the index of the first token that holds a character beyond `prompt`.

    By character offsets where the tokenizer gives them, else by the common prefix of the encodings of `prompt` and
    `text`. Never by subtracting lengths: a tokenizer may merge across the boundary, and the token that does belongs to
    the option.
    """
    return option_starts(tokenizer, [(prompt, text)])[0]


def option_starts(tokenizer: PreTrainedTokenizerBase, asked: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """`option_start` of each (prompt, text)."""
    if not getattr(tokenizer, "is_fast", False):
        return [_start_by_prefix(tokenizer, prompt, text) for prompt, text in asked]
    if not asked:
        return []
    # the offsets of one text at a time: those of all (`return_offsets_mapping`), 50,000 pairs of SST-2, start a full
    # garbage collection in every other call, a quarter of a second
    encodings = tokenizer([text for _, text in asked]).encodings
    return [
        _start_by_offsets(encoding.ids, [end for _, end in encoding.offsets], len(prompt))
        for (prompt, _), encoding in zip(asked, encodings, strict=True)
    ]


def _start_by_offsets(ids: list[int], ends: list[int], prompt: int) -> tuple[list[int], int]:
    start = next((i for i, end in enumerate(ends) if end > prompt), len(ends))
    stop = next((i for i in range(len(ends), start, -1) if ends[i - 1] > prompt), start)
    return ids[:stop], start


def _start_by_prefix(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> tuple[list[int], int]:
    ids, prompt_ids = tokenizer.encode(text), tokenizer.encode(prompt)
    while ids and prompt_ids and ids[-1] == prompt_ids[-1] and ids[-1] in tokenizer.all_special_ids:
        # a token that the tokenizer appends to every text
        ids, prompt_ids = ids[:-1], prompt_ids[:-1]
    common = next((i for i, (x, y) in enumerate(zip(ids, prompt_ids, strict=False)) if x != y), None)
    return ids, min(len(ids), len(prompt_ids)) if common is None else common


def shortened(
    ids: list[int], start: int, special: frozenset[int], max_length: int, origin: str
) -> tuple[list[int], int]:
    """The ids of a text and the start of its option, without what is too much at the beginning of the prompt."""
    kept = 1 if ids[0] in special else 0
    cut = max(0, len(ids) - max_length)
    if (start - cut <= kept and cut) or start == 0:
        raise InputError(f"{origin}: the option needs {len(ids) - start} tokens and a prompt, max_length={max_length}")
    return (ids[:kept] + ids[kept + cut :], start - cut) if cut else (ids, start)


def _unique_sequences(sequences: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    unique: list[tuple[int, ...]] = []
    for sequence in sorted(map(tuple, sequences), key=len, reverse=True):
        if not any(longer[: len(sequence)] == sequence for longer in unique):
            unique.append(sequence)
    return tuple(unique)
