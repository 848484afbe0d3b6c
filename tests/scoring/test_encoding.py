"""From samples to token ids: where the option begins, what is run, what is shared, what is cut."""

import pytest

from xgblora.errors import InputError
from xgblora.scoring import encode, encode_all
from xgblora.scoring.encoding import option_start, refuse_same_tokens


def option_ids(example) -> list[list[int]]:
    """The token ids of each candidate's option."""
    return [[token for _, token in option] for option in example.options]


def whole_texts(example) -> list[list[int]]:
    """The token ids of each candidate, put together again from the sequences and the rows."""
    texts = []
    for option in example.options:
        (first_sequence, first_index), *_ = (example.rows[row] for row, _ in option)
        ids = list(example.sequences[first_sequence][: first_index + 1])
        for row, token in option:
            sequence, index = example.rows[row]
            assert list(example.sequences[sequence][: index + 1]) == ids
            ids.append(token)
        texts.append(ids)
    return texts


class TestOptTokenizer:
    """The tokenizer of OPT: byte-level BPE, `</s>` (2) before every text."""

    def test_sst2_options_are_one_token_each_behind_the_prompt(self, shared_tokenizer, make_sample):
        tokenizer = shared_tokenizer("opt-tokenizer")
        sample = make_sample("a gem It was", " terrible", " great", label=1)
        example = encode(sample, tokenizer, max_length=512)
        assert option_ids(example) == [[6587], [372]]
        (sequence,) = example.sequences
        assert sequence[0] == 2
        assert tokenizer.decode(sequence[1:]) == "a gem It was"
        assert example.rows == ((0, len(sequence) - 1),)
        assert example.label == 1

    def test_ids_are_those_of_the_whole_text(self, shared_tokenizer, make_sample):
        tokenizer = shared_tokenizer("opt-tokenizer")
        sample = make_sample("it 's slow -- very , very slow It was", " terrible", " great")
        example = encode(sample, tokenizer, max_length=512)
        assert whole_texts(example) == [tokenizer(text)["input_ids"] for text in sample.candidates]

    def test_the_token_that_joins_prompt_and_option_belongs_to_the_option(self, shared_tokenizer):
        tokenizer = shared_tokenizer("opt-tokenizer")
        # " terrible" is one token, so a prompt that ends with its space shares that token with the option
        ids, start = option_start(tokenizer, "It was ", "It was terrible")
        assert ids[start:] == [6587]

    def test_a_prompt_with_letters_of_several_bytes(self, shared_tokenizer, make_sample):
        tokenizer = shared_tokenizer("opt-tokenizer")
        example = encode(make_sample("naïve 漢字 🎬 It was", " terrible", " great"), tokenizer, max_length=512)
        assert option_ids(example) == [[6587], [372]]


class TestStoriesTokenizer:
    """A Llama tokenizer of 512 tokens: words fall into pieces."""

    def test_options_of_several_tokens_are_whole(self, shared_tokenizer, make_sample):
        tokenizer = shared_tokenizer("stories260K")
        sample = make_sample("The film was good. It was", " terrible", " great")
        example = encode(sample, tokenizer, max_length=512)
        texts = whole_texts(example)
        assert texts == [tokenizer(text)["input_ids"] for text in sample.candidates]
        for ids, text in zip(option_ids(example), (" terrible", " great"), strict=True):
            assert len(ids) > 1
            assert tokenizer.decode(ids).strip() == text.strip()

    def test_fast_and_slow_paths_agree(self, shared_tokenizer, slow_tokenizer, make_sample):
        tokenizer = shared_tokenizer("stories260K")
        sample = make_sample("The film was good. It was", " terrible", " great")
        assert encode(sample, slow_tokenizer(tokenizer), max_length=512) == encode(sample, tokenizer, max_length=512)


class TestMergesAcrossTheBoundary:
    """A tokenizer that makes one token of the end of the prompt and the start of the option."""

    @pytest.fixture
    def tokenizer(self, word_tokenizer):
        return word_tokenizer([("s", " "), ("s ", "g")])

    @pytest.mark.parametrize("slow", [False, True])
    def test_the_option_is_never_lost(self, tokenizer, slow_tokenizer, make_sample, slow):
        # "was" + " good": w a "s g" o o d
        example = encode(
            make_sample("was", " good", " bad"), slow_tokenizer(tokenizer) if slow else tokenizer, max_length=64
        )
        good, bad = (tokenizer.convert_ids_to_tokens(ids) for ids in option_ids(example))
        assert good == ["s g", "o", "o", "d"]
        assert bad == ["s ", "b", "a", "d"]

    def test_an_option_of_one_letter_inside_the_merged_token(self, tokenizer, make_sample):
        example = encode(make_sample("was ", "g", "o"), tokenizer, max_length=64)
        assert [tokenizer.convert_ids_to_tokens(ids) for ids in option_ids(example)] == [["s g"], ["o"]]

    def test_subtracting_lengths_would_have_lost_it(self, tokenizer):
        ids, start = option_start(tokenizer, "was", "was g")
        assert len(ids) - len(tokenizer("was")["input_ids"]) == 0
        assert tokenizer.convert_ids_to_tokens(ids[start:]) == ["s g"]


class TestSlowTokenizer:
    """Without offsets: the common prefix of the encodings of prompt and text."""

    def test_it_agrees_with_offsets(self, tiny_tokenizer, slow_tokenizer, make_sample):
        sample = make_sample("a gem It was", " terrible", " great", " a mess")
        slow = encode(sample, slow_tokenizer(tiny_tokenizer), max_length=64)
        assert slow == encode(sample, tiny_tokenizer, max_length=64)

    def test_an_appended_special_token_is_no_part_of_the_option(self, tiny_tokenizer, slow_tokenizer, make_sample):
        closing = slow_tokenizer(tiny_tokenizer, appended=(tiny_tokenizer.eos_token_id,))
        sample = make_sample("a gem It was", " terrible", " great")
        assert encode(sample, closing, max_length=64) == encode(sample, tiny_tokenizer, max_length=64)

    def test_an_empty_option_is_refused_with_an_appended_token_too(self, tiny_tokenizer, slow_tokenizer, make_sample):
        closing = slow_tokenizer(tiny_tokenizer, appended=(tiny_tokenizer.eos_token_id,))
        with pytest.raises(InputError, match="empty after tokenization"):
            encode(make_sample("a gem", ""), closing, max_length=64)


def test_an_appended_special_token_is_no_part_of_the_option(word_tokenizer, make_sample):
    opening, closing = word_tokenizer([]), word_tokenizer([], closing=True)
    sample = make_sample("It was", " bad", " good")
    assert encode(sample, closing, max_length=64) == encode(sample, opening, max_length=64)


@pytest.mark.parametrize("slow", [False, True])
def test_an_empty_option_is_refused_with_its_sample(tiny_tokenizer, slow_tokenizer, make_sample, slow):
    tokenizer = slow_tokenizer(tiny_tokenizer) if slow else tiny_tokenizer
    with pytest.raises(InputError, match="sample 1: the option '' is empty after tokenization"):
        encode(make_sample("a gem It was", " great", ""), tokenizer, max_length=64)


def test_an_option_that_a_normalizer_removes_is_refused(word_tokenizer, make_sample):
    tokenizer = word_tokenizer([])
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    with pytest.raises(InputError, match="the option ' ' is empty"):
        encode(make_sample("bad", " "), tokenizer, max_length=64)


class TestSharing:
    """Candidates whose tokens agree are run once."""

    @pytest.fixture
    def tokenizer(self, word_tokenizer):
        return word_tokenizer([])

    def test_two_options_of_one_token_share_one_sequence_without_them(self, tokenizer, make_sample):
        example = encode(make_sample("ab", "c", "d"), tokenizer, max_length=64)
        assert tokenizer.convert_ids_to_tokens(example.sequences[0]) == ["</s>", "a", "b"]
        assert len(example.sequences) == len(example.rows) == 1
        assert len(example) == 3

    def test_an_option_that_begins_another_shares_its_sequence(self, tokenizer, make_sample):
        example = encode(make_sample("ab", "cd", "cde", "c"), tokenizer, max_length=64)
        assert [tokenizer.convert_ids_to_tokens(ids) for ids in example.sequences] == [["</s>", "a", "b", "c", "d"]]
        assert [tokenizer.decode(ids).replace(" ", "") for ids in whole_texts(example)] == [
            "</s>abcd",
            "</s>abcde",
            "</s>abc",
        ]
        # the row behind "b" predicts the c of all three
        assert len(example.rows) == 3

    def test_options_that_part_only_at_their_last_token_share(self, tokenizer, make_sample):
        assert len(encode(make_sample("ab", "cd", "ce"), tokenizer, max_length=64).sequences) == 1

    def test_options_that_part_earlier_do_not(self, tokenizer, make_sample):
        example = encode(make_sample("ab", "cde", "xde", "c"), tokenizer, max_length=64)
        assert len(example.sequences) == 2
        expected = [tokenizer("ab" + option)["input_ids"] for option in ("cde", "xde", "c")]
        assert whole_texts(example) == expected

    def test_the_same_candidate_twice_is_run_once(self, tokenizer, make_sample):
        example = encode(make_sample("ab", "cd", "cd"), tokenizer, max_length=64)
        assert len(example.sequences) == 1
        assert example.options[0] == example.options[1]


def test_only_right_encodes_the_right_candidate_alone(tiny_tokenizer, make_sample):
    sample = make_sample("a gem It was", " terrible", " great", label=1)
    alone = encode(sample, tiny_tokenizer, max_length=64, only_right=True)
    assert option_ids(alone) == [option_ids(encode(sample, tiny_tokenizer, max_length=64))[1]]
    assert alone.label == 0


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("form", [{}, {"only_right": True}, {"whole_text": True}])
def test_samples_together_are_encoded_as_each_alone(tiny_tokenizer, slow_tokenizer, make_sample, form, slow):
    tokenizer = slow_tokenizer(tiny_tokenizer) if slow else tiny_tokenizer
    samples = [
        make_sample("a gem It was", " terrible", " great", label=1),
        make_sample("a long and dull film that no one should see It was", " great", " terrible", " a gem"),
        make_sample("dull", " film"),
    ]
    together = encode_all(samples, tokenizer, max_length=12, **form)
    assert together == [encode(sample, tokenizer, max_length=12, **form) for sample in samples]
    assert encode_all([], tokenizer, max_length=12, **form) == []


class TestTruncation:
    """Texts longer than `max_length` lose their beginning."""

    @pytest.fixture
    def tokenizer(self, word_tokenizer):
        return word_tokenizer([])

    def tokens(self, tokenizer, sample, max_length):
        example = encode(sample, tokenizer, max_length=max_length)
        return ["".join(tokenizer.convert_ids_to_tokens(ids)) for ids in whole_texts(example)]

    def test_the_first_special_token_and_the_option_stay(self, tokenizer, make_sample):
        assert self.tokens(tokenizer, make_sample("abcdefgh", "xy", "z"), 6) == ["</s>fghxy", "</s>efghz"]

    def test_a_text_that_fits_is_left_whole(self, tokenizer, make_sample):
        assert self.tokens(tokenizer, make_sample("abcd", "x"), 6) == ["</s>abcdx"]

    def test_without_a_special_token_at_the_start_nothing_is_kept_there(self, tokenizer, make_sample):
        tokenizer.backend_tokenizer.post_processor = None
        sample = make_sample("abcdefgh", "xy")
        from tokenizers import processors

        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
        assert self.tokens(tokenizer, sample, 6) == ["efghxy"]

    def test_one_token_of_the_prompt_is_the_least(self, tokenizer, make_sample):
        assert self.tokens(tokenizer, make_sample("abcdefgh", "xy"), 4) == ["</s>hxy"]
        with pytest.raises(InputError, match="sample 1: the option needs 2 tokens and a prompt, max_length=3"):
            encode(make_sample("abcdefgh", "xy"), tokenizer, max_length=3)

    def test_no_sequence_is_longer_than_max_length(self, tokenizer, make_sample):
        example = encode(make_sample("abcdefgh" * 20, "xy", "z", "uvw"), tokenizer, max_length=10)
        assert len(example) <= 10


@pytest.fixture
def bare_tokenizer(word_tokenizer):
    """A tokenizer that puts nothing before a text, as those of GPT-2, Pythia and Qwen do."""
    from tokenizers import processors

    tokenizer = word_tokenizer([])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    return tokenizer


def test_an_option_that_nothing_stands_before_gets_the_end_of_text(bare_tokenizer, make_sample):
    example = encode(make_sample("", "xyz", "z"), bare_tokenizer, max_length=8)
    texts = [[bare_tokenizer.eos_token_id, *bare_tokenizer.encode(text)] for text in ("xyz", "z")]
    assert whole_texts(example) == texts
    assert option_ids(example) == [text[1:] for text in texts]


def test_or_the_beginning_of_text(bare_tokenizer, make_sample):
    bare_tokenizer.bos_token = "<pad>"
    example = encode(make_sample("", "x"), bare_tokenizer, max_length=8)
    assert whole_texts(example)[0][0] == bare_tokenizer.bos_token_id


def test_where_there_is_neither_the_reason_is_said(bare_tokenizer, make_sample):
    bare_tokenizer.eos_token = None
    with pytest.raises(InputError, match="nothing stands before the answer, and the tokenizer has neither BOS nor EOS"):
        encode(make_sample("", "x"), bare_tokenizer, max_length=8)


class TestSameTokens:
    """A wrong candidate that a tokenizer makes the right one of."""

    @pytest.fixture
    def unknowing(self):
        """A tokenizer of whole words that knows five."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {word: number for number, word in enumerate(["<unk>", "It", "was", "good", "bad"])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")

    @pytest.mark.parametrize("whole_text", [False, True])
    def test_two_unknown_words(self, unknowing, make_sample, whole_text):
        sample = make_sample("It was", " dreadful", " good", " marvellous", label=2)
        example = encode(sample, unknowing, max_length=8, whole_text=whole_text)
        with pytest.raises(InputError) as error:
            refuse_same_tokens(sample, example, unknowing)
        assert "the candidates ' marvellous' and ' dreadful' cannot be told apart, both are <unk>" in str(error.value)

    def test_two_wrong_ones_may_be_the_same(self, unknowing, make_sample):
        sample = make_sample("It was", " dreadful", " good", " marvellous", label=1)
        refuse_same_tokens(sample, encode(sample, unknowing, max_length=8), unknowing)

    def test_the_right_one_alone_says_nothing_of_the_others(self, unknowing, make_sample):
        sample = make_sample("It was", " dreadful", " marvellous")
        refuse_same_tokens(sample, encode(sample, unknowing, max_length=8, only_right=True), unknowing)


def test_all_ids_of_an_example(tiny_tokenizer, make_sample):
    sample = make_sample("a gem It was", " terrible", " great")
    texts = [tiny_tokenizer.encode(text) for text in sample.candidates]
    assert encode(sample, tiny_tokenizer, max_length=64).ids == {number for text in texts for number in text}
