"""Answers that are written together are those of one plain greedy generation a prompt, without padding or cache."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

import xgblora
from xgblora.scoring.generation import generate_answers, prompt_ids
from xgblora.scoring.greedy import Ends, write, write_in_shares
from xgblora.scoring.greedy_ways import Ways, ways_for

PASSAGE = list(range(3, 27))
# questions about one passage, one of them twice, and what begins otherwise
PROMPTS = [[*PASSAGE, 40, 41], [*PASSAGE, 50], [*PASSAGE, 40, 41], [*PASSAGE, 33, 34, 35, 36], [60, 61, 5], [9]]
MOST = 8


def alone(model, prompt, ends: Ends) -> list[int]:
    """The likeliest token, one after the other."""
    ids = torch.tensor([prompt])
    while ids.shape[1] == len(prompt) or not ends.reached(ids[0, len(prompt) :].tolist()):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


def some_that_end(model) -> Ends:
    """Ends that a row reaches early, and others do not."""
    whole = [alone(model, prompt, Ends(frozenset(), MOST)) for prompt in PROMPTS]
    return Ends(frozenset({whole[1][2]}), MOST)


@pytest.mark.parametrize("tokens", [None, 80], ids=["at once", "joining"])
def test_tokens_are_those_of_each_prompt_alone(make_model, tokens):
    model = make_model(0)
    ends, ways = some_that_end(model), ways_for(model, 40)
    assert ways == Ways(joins=True, spares=True)
    expected = [alone(model, prompt, ends) for prompt in PROMPTS]
    assert min(map(len, expected)) < MOST
    assert write(model, PROMPTS, ends, ways, tokens=tokens) == expected


def test_a_beginning_is_run_once_and_rows_that_have_ended_are_not(make_opt):
    model = make_opt()
    run = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: run.append(inputs[0].numel()))
    ways = Ways(joins=True, spares=True)
    write(model, PROMPTS[:4], Ends(frozenset(), 1), ways)
    # the passage, and four ends as long as the longest
    assert run == [len(PASSAGE), 4 * 4]
    run.clear()
    first = write(model, PROMPTS[4:], Ends(frozenset(), 1), ways)[0]
    run.clear()
    write(model, PROMPTS[4:], Ends(frozenset(first), 3), ways)
    assert run == [2 * 3, 1, 1]


def test_a_sliding_window_is_written_without_joining():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        initializer_range=0.1,
    )
    model = MistralForCausalLM(config).eval()
    ends, ways = some_that_end(model), ways_for(model, 40)
    assert not ways.joins
    assert write(model, PROMPTS, ends, ways) == [alone(model, prompt, ends) for prompt in PROMPTS]


class Counting(GPT2LMHeadModel):
    """Takes no positions and counts those before its tokens, padding among them."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None, **_):
        return super().forward(
            input_ids, attention_mask=attention_mask, past_key_values=past_key_values, use_cache=use_cache
        )


def test_a_model_that_counts_padding_is_given_none(tiny_tokenizer, caplog):
    torch.manual_seed(0)
    model = Counting(
        GPT2Config(
            vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3
        )
    ).eval()
    prompts = ["a gem", "bland , slow and dull , a film", "the cast"]
    with caplog.at_level("INFO", logger="xgblora"):
        answers = generate_answers(model, tiny_tokenizer, prompts, max_length=48, max_new_tokens=12)
    assert "Answers are written to prompts of one length at a time" in caplog.text
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer == generate_answers(model, tiny_tokenizer, [prompt], max_length=48, max_new_tokens=12)[0]
        ids = prompt_ids(tiny_tokenizer, prompt, 36)
        written = alone(model, ids, Ends(frozenset(), 12))
        assert tiny_tokenizer.decode(written, skip_special_tokens=True).partition("\n")[0].strip().startswith(answer)


def test_shares_write_what_each_adapter_writes(make_opt, randomise_adapters):
    model = make_opt()
    ways = ways_for(model, 40)
    adapters = xgblora.attach(model, alpha=16.0, seed=0)
    randomise_adapters(adapters)
    adapters.arena.allocate_live(2, torch.float32)
    adapters.arena.perturb(torch.tensor([3]), torch.tensor([0.3]), torch.tensor([1.0, -1.0]), "gaussian")
    ends, expected = some_that_end(model), []
    for row in range(2):
        adapters.arena.read_live(row, row + 1)
        expected += [alone(model, prompt, ends) for prompt in PROMPTS]
    assert expected[: len(PROMPTS)] != expected[len(PROMPTS) :]
    adapters.arena.read_live(0, 2)
    assert write_in_shares(model, PROMPTS * 2, ends, ways, shares=2) == expected
