"""Greedy answers in batches."""

import pytest
import torch
from transformers import GenerationConfig

from xgblora.errors import InputError
from xgblora.scoring import generate_answers
from xgblora.scoring.generation import prompt_ids
from xgblora.scoring.vocabulary import line_end_ids

PROMPTS = ["Once upon a time", "Lily and Tom went to the park and they saw a", "The"]


def test_a_batch_is_answered_as_each_prompt_alone(load_shared):
    model, tokenizer = load_shared("stories260K")
    together = generate_answers(model, tokenizer, PROMPTS, max_length=128, max_new_tokens=12, tokens=1000)
    alone = [generate_answers(model, tokenizer, [p], max_length=128, max_new_tokens=12)[0] for p in PROMPTS]
    assert together == alone
    # the plain way: the likeliest token, one after the other
    ids = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
    start = ids.shape[1]
    for _ in range(12):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
    written = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    assert together[0] == written.split("\n")[0].strip()


class Parrot(torch.nn.Module):
    """Writes the tokens of `text`, whatever it is asked."""

    def __init__(self, text: list[int]):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.text = text

    def generate(self, input_ids, attention_mask, generation_config):
        written = torch.tensor(self.text[: generation_config.max_new_tokens]).expand(len(input_ids), -1)
        return torch.cat([input_ids, written], dim=1)


@pytest.mark.parametrize("end", ["\n", "</s>"])
def test_an_answer_ends_with_its_line_or_text(tiny_tokenizer, end):
    text = tiny_tokenizer.encode(f" a gem {end}more of it", add_special_tokens=False)
    assert generate_answers(Parrot(text), tiny_tokenizer, ["x", "a b c"], max_length=64) == ["a gem", "a gem"]


def test_an_answer_has_no_more_than_so_many_tokens(tiny_tokenizer):
    text = tiny_tokenizer.encode("z z z z z z", add_special_tokens=False)
    (answer,) = generate_answers(Parrot(text), tiny_tokenizer, ["x"], max_length=64, max_new_tokens=3)
    assert answer == "z z"


def test_long_prompts_keep_their_end_and_the_first_special_token(tiny_tokenizer):
    whole = tiny_tokenizer("a gem It was")["input_ids"]
    assert prompt_ids(tiny_tokenizer, "a gem It was", 100) == whole
    assert prompt_ids(tiny_tokenizer, "a gem It was", 3) == [whole[0], *whole[-2:]]


def test_the_empty_prompt_begins_with_what_begins_a_text(tiny_tokenizer):
    assert prompt_ids(tiny_tokenizer, "", 8) == [tiny_tokenizer.bos_token_id]


class TestLineEndsInsideTokens:
    """Qwen and Llama 3 have a token for two line ends, and for a full stop and one."""

    @pytest.fixture
    def joining(self, tiny_tokenizer):
        """The tiny tokenizer with such tokens."""
        import copy

        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.add_tokens(["\n\n", ".\n", "\nA"])
        return tokenizer

    @pytest.mark.parametrize("text, answer", [("Rome\n\nQ", "Rome"), ("Rome.\nQ", "Rome."), ("Rome\nA b", "Rome")])
    def test_an_answer_ends_before_them(self, joining, text, answer):
        ids = joining.encode(text, add_special_tokens=False)
        assert generate_answers(Parrot(ids), joining, ["x"], max_length=64) == [answer]

    def test_all_of_them_stop(self, joining):
        ends = line_end_ids(joining)
        assert {joining.decode([number]) for number in ends} == {"\n", "\n\n", ".\n", "\nA"}


class TestTheModelsOwnSettings:
    """What a generation_config.json says is for other uses of the model."""

    @pytest.mark.parametrize(
        "settings",
        [
            {"repetition_penalty": 5.0},
            {"no_repeat_ngram_size": 1},
            {"guidance_scale": 3.0},
            {"stop_strings": ["a", "e"]},
            {"min_new_tokens": 12},
            {"do_sample": True, "temperature": 9.0, "top_k": 3},
            {"forced_bos_token_id": 5},
            {"exponential_decay_length_penalty": (1, 9.0)},
            {"sequence_bias": [[[7], 99.0]]},
            {"num_beams": 3, "length_penalty": 9.0},
        ],
        ids=lambda settings: next(iter(settings)),
    )
    def test_greedy_answers_do_not_go_by_them(self, opt, tiny_tokenizer, settings):
        prompts = ["a gem", "bland , slow and", "the cast"]
        plain = generate_answers(opt, tiny_tokenizer, prompts, max_length=64, max_new_tokens=12)
        assert any(plain)
        opt.generation_config = GenerationConfig(**settings)
        assert generate_answers(opt, tiny_tokenizer, prompts, max_length=64, max_new_tokens=12) == plain
        assert {name: getattr(opt.generation_config, name) for name in settings} == settings

    def test_tokens_that_it_suppresses_may_be_written(self, opt, tiny_tokenizer):
        plain = generate_answers(opt, tiny_tokenizer, ["a gem"], max_length=64, max_new_tokens=4)
        opt.generation_config.suppress_tokens = tiny_tokenizer.encode(plain[0], add_special_tokens=False)
        assert generate_answers(opt, tiny_tokenizer, ["a gem"], max_length=64, max_new_tokens=4) == plain

    def test_but_all_its_ends_of_text_do_end_one(self, tiny_tokenizer):
        ids = tiny_tokenizer.encode("a gem and more", add_special_tokens=False)
        model = Parrot(ids)
        model.generation_config = GenerationConfig(eos_token_id=[tiny_tokenizer.eos_token_id, ids[-1]])
        (answer,) = generate_answers(model, tiny_tokenizer, ["x"], max_length=64)
        assert answer == tiny_tokenizer.decode(ids[:-1]).strip()


@pytest.mark.parametrize("length, new", [(64, 0), (51, 50), (10, 50)])
def test_a_prompt_needs_room(tiny_tokenizer, length, new):
    with pytest.raises(InputError, match=f"max_new_tokens={new}: must be 1 or more"):
        generate_answers(Parrot([5]), tiny_tokenizer, ["x"], max_length=length, max_new_tokens=new)
