"""Tokenizer and model: which ids the model can read, which of them fills a batch up, and which end an answer."""

import functools
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedTokenizerBase

from xgblora.errors import InputError

# how tokenizers spell a line end inside a token: as it is, as a byte of byte-level BPE, as a byte of SentencePiece
_LINE_ENDS = ("\n", "\u010a", "<0x0A>")


def rows_of_embeddings(model: nn.Module) -> int | None:
    """How many token ids `model` reads and predicts; None where it does not say."""
    tables = [getattr(model, f"get_{name}_embeddings", lambda: None)() for name in ("input", "output")]
    rows = [_rows(table) for table in tables]
    return min((count for count in rows if count), default=None)


def _rows(table: nn.Module | None) -> int | None:
    sizes = [getattr(table, name, None) for name in ("num_embeddings", "out_features")]
    return next((size for size in sizes if isinstance(size, int)), None)


def padding_id(tokenizer: PreTrainedTokenizerBase, rows: int | None = None) -> int:
    """What fills a batch up. It is masked out of attention and loss, so that any id will do that the model reads.

    Args:
        tokenizer: any; it may have no token for padding, nor for the end of a text.
        rows: how many ids the model reads; None: any.
    """
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(one for one in known if one is not None and (rows is None or one < rows))


def first_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """What stands before a text that must have something before it: BOS, else EOS, else nothing (None)."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def refuse_unknown_ids(tokenizer: PreTrainedTokenizerBase, rows: int | None, ids: Iterable[int]) -> None:
    """Raise InputError if one of `ids` is none of the `rows` that the model has."""
    largest = max(ids, default=0)
    if rows is not None and largest >= rows:
        raise InputError(
            f"model_name: its tokenizer gives the token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), and "
            f"its embeddings have {rows} rows: tokenizer and model do not belong together"
        )


@functools.lru_cache(maxsize=8)
def line_end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that hold a line end, alone or among other characters (of Qwen and Llama 3 two line ends are one)."""
    spelled = [number for token, number in tokenizer.get_vocab().items() if any(end in token for end in _LINE_ENDS)]
    candidates = {*spelled, *tokenizer.encode("\n", add_special_tokens=False)[-1:]}
    return frozenset(number for number in candidates if "\n" in tokenizer.decode([number]))


def end_ids(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> frozenset[int]:
    """The tokens that end a text, as the tokenizer and the model's generation configuration have them."""
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = of_model if isinstance(of_model, list) else [of_model]
    return frozenset(number for number in (tokenizer.eos_token_id, *ends) if number is not None)
