"""Models, samples and tokenizers."""

import pytest

from xgblora.tasks import Sample


@pytest.fixture
def make_sample():
    """A function `(prompt, *options, label)` that makes a sample with the options appended to the prompt."""

    def make(prompt: str, *options: str, label: int = 0) -> Sample:
        return Sample(prompt, tuple(prompt + option for option in options), label, "sample 1")

    return make


class SlowTokenizer:
    """What `encode` needs of a slow tokenizer: no offsets. It asks a fast one for its ids."""

    is_fast = False

    def __init__(self, fast, *, appended: tuple[int, ...] = ()):
        self._fast, self._appended = fast, list(appended)
        self.all_special_ids = fast.all_special_ids
        self.bos_token_id, self.eos_token_id = fast.bos_token_id, fast.eos_token_id

    def encode(self, text: str) -> list[int]:
        return self._fast(text)["input_ids"] + self._appended

    def __call__(self, *arguments, **keywords):
        raise NotImplementedError("return_offset_mapping is not available when using Python tokenizers")


@pytest.fixture
def slow_tokenizer():
    """A function that makes a slow tokenizer of a fast one; it may append tokens to every text."""
    return SlowTokenizer


@pytest.fixture
def word_tokenizer():
    """A function `(vocabulary, merges, **settings)` that makes a character-level BPE without pre-tokenization."""
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    def make(merges: list[tuple[str, str]], *, closing: bool = False):
        characters = list("abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.")
        tokens = ["<pad>", "</s>", *characters, *(left + right for left, right in merges)]
        vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="</s> $A </s>" if closing else "</s> $A", special_tokens=[("</s>", 1)]
        )
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")

    return make


@pytest.fixture
def model(make_model, tiny_tokenizer):
    """A tiny OPT, Llama or GPT-2 with the vocabulary of `tiny_tokenizer`."""
    return make_model(vocab_size=len(tiny_tokenizer))


@pytest.fixture
def opt(make_opt, tiny_tokenizer):
    """A tiny OPT with the vocabulary of `tiny_tokenizer`."""
    return make_opt(vocab_size=len(tiny_tokenizer))


@pytest.fixture
def load_shared(shared_model, shared_tokenizer):
    """A function `(name)` that loads a shared model and its tokenizer."""
    from transformers import AutoModelForCausalLM

    return lambda name: (AutoModelForCausalLM.from_pretrained(shared_model(name)).eval(), shared_tokenizer(name))
