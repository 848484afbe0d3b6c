"""Greedy answers in batches."""

import pytest
import torch

from xgblora.errors import InputError
from xgblora.scoring import generate_answers
from xgblora.scoring.generation import prompt_ids, stop_tokens

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

    def generate(self, input_ids, max_new_tokens, **settings):
        written = torch.tensor(self.text[:max_new_tokens]).expand(len(input_ids), -1)
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


def test_stop_tokens_are_the_line_end_and_the_end_of_text(tiny_tokenizer):
    newline, end = stop_tokens(tiny_tokenizer)
    assert tiny_tokenizer.decode([newline]) == "\n"
    assert end == tiny_tokenizer.eos_token_id


@pytest.mark.parametrize("length, new", [(64, 0), (51, 50), (10, 50)])
def test_a_prompt_needs_room(tiny_tokenizer, length, new):
    with pytest.raises(InputError, match=f"max_new_tokens={new}: must be 1 or more"):
        generate_answers(Parrot([5]), tiny_tokenizer, ["x"], max_length=length, max_new_tokens=new)
