"""The tokenizer: byte pairs of printable ASCII, with OPT's special tokens."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
START_ID, PAD_ID, EOS_ID = 0, 1, 2
MAX_LENGTH = 128
SPECIAL_TOKENS = ["<s>", PAD, EOS, UNK]  # in the order of their ids, which are OPT's


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer which, like OPT's, puts `</s>` before every text.

    Its alphabet is printable ASCII rather than all 256 bytes, which leaves more of the small vocabulary to whole words;
    anything else becomes `<unk>`.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=[chr(code) for code in range(ord("!"), ord("~") + 1)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{EOS} $A", pair=f"{EOS} $A $B", special_tokens=[(EOS, EOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def word_ids(tokenizer: PreTrainedTokenizerFast, words: Iterable[str]) -> list[int]:
    """The token of each word within a sentence; each has to be a single token."""
    ids = {word: tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words}
    if any(len(tokens) != 1 for tokens in ids.values()):
        raise ValueError(f"every word has to be a single token: {ids}")
    return [token for tokens in ids.values() for token in tokens]
