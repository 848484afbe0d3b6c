"""Completions of all members in one batch: those that each member, each prompt and each completion has alone."""

import re

import pytest
import torch

import xgblora
from xgblora.completions import Sampling, generate_for_members
from xgblora.completions import members as of_members
from xgblora.errors import InputError
from xgblora.scoring.generation import prompt_ids

SHARED = "the film was not what the "
PROMPTS = ["it was", "a great film and", "the film"]
SAMPLING = Sampling(temperature=1.0, completions=2, max_new_tokens=7)
P = 5


@pytest.fixture
def case(make_model, tiny_tokenizer):
    """A model with adapters of `P` members that differ from one another, and its tokenizer."""
    model = make_model(vocab_size=len(tiny_tokenizer))
    targets = ("c_attn", "c_proj") if hasattr(model, "transformer") else ("q_proj", "v_proj")
    adapters = xgblora.attach(model, targets, alpha=2.0, seed=0)
    live = adapters.arena.allocate_live(P, torch.float32)
    live.copy_(0.5 * torch.randn(live.shape, generator=torch.Generator().manual_seed(1)))
    return model, tiny_tokenizer, adapters


def written(case, prompts=PROMPTS, *, members=P, sampling=SAMPLING, **settings):
    return generate_for_members(*case, prompts, members=members, sampling=sampling, seed=3, **settings)


def flat(of_member):
    """The completions of all prompts."""
    return [completion for of_prompt in of_member for completion in of_prompt]


def test_every_member_writes_what_it_writes_alone(case):
    together = written(case)
    assert [len(of_member) for of_member in together] == [len(PROMPTS)] * P
    assert len({completion.ids for of_member in together for of_prompt in of_member for completion in of_prompt}) > P
    live = case[2].arena.live
    rows = live.clone()
    for member in range(P):
        live[0] = rows[member]
        assert written(case, members=1)[0] == together[member]


def test_every_prompt_is_continued_as_alone_whatever_stands_beside_it(case):
    together = written(case)
    for number, prompt in enumerate(PROMPTS):
        alone = written(case, [prompt], numbers=[number], tokens=1)
        assert [of_member[0] for of_member in alone] == [of_member[number] for of_member in together]
    assert written(case, tokens=1) == together
    first = written(case, sampling=Sampling(temperature=1.0, completions=1, max_new_tokens=4))
    assert first[2][1][0].ids == together[2][1][0].ids[: len(first[2][1][0].ids)]


def test_what_prompts_begin_with_is_read_once_and_changes_nothing(case, monkeypatch):
    prompts = [SHARED + end for end in ("critics said", "a", "end of it all was")]
    texts = [prompt_ids(case[1], prompt, 60) for prompt in prompts]
    sizes = []
    handle = case[0].register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    shared = written(case, texts)
    assert sizes[0][0] == P
    assert sizes[0][1] >= of_members._SHARED
    assert sizes[1] == (3 * P, max(map(len, texts)) - sizes[0][1])
    monkeypatch.setattr(of_members, "_SHARED", 1000)
    sizes.clear()
    assert written(case, texts) == shared
    assert sizes[0] == (3 * P, max(map(len, texts)))
    handle.remove()


def test_greedy_texts_are_those_of_the_plain_loop(case):
    model, tokenizer, adapters = case
    sampling = Sampling(temperature=0, max_new_tokens=6)
    for members, results in (
        (2, written(case, members=2, sampling=sampling)),
        (None, written(case, members=None, sampling=sampling)),
    ):
        for member, of_member in enumerate(results):
            if members is not None:
                adapters.arena.read_live(member, member + 1)
            for prompt, (completion,) in zip(PROMPTS, of_member, strict=True):
                ids = torch.tensor([prompt_ids(tokenizer, prompt, 50)])
                for token in completion.ids:
                    with torch.no_grad():
                        assert model(ids).logits[0, -1].argmax() == token
                    ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        adapters.arena.read_master()


def test_rows_that_end_leave_the_batch(case):
    model, whole = case[0], written(case)
    # a token that some wrote early, and some did not
    tokens = [completion.ids for of_member in whole for completion in flat(of_member)]
    end = next(token for token in sorted(set(sum(tokens, ()))) if 0 < sum(token in ids for ids in tokens) < len(tokens))
    model.generation_config.eos_token_id = end
    sizes = []
    model.register_forward_pre_hook(lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    ended = written(case)
    assert sizes[1] > sizes[-1]
    for of_member, before in zip(ended, whole, strict=True):
        for completion, other in zip(flat(of_member), flat(before), strict=True):
            cut = other.ids.index(end) + 1 if end in other.ids else len(other.ids)
            assert completion.ids == other.ids[:cut]
            assert completion.truncated == (end not in other.ids)


def test_a_text_ends_before_a_stop_string(case):
    whole = written(case)
    texts = [one.text for of_member in whole for one in flat(of_member)]
    # two letters, as a rule of two tokens
    stop = next(text[i : i + 2] for text in texts for i in range(1, 9) if re.fullmatch("[a-z]{2}", text[i : i + 2]))
    for of_member, before in zip(written(case, sampling=Sampling(1.0, 1.0, 2, 7, (stop,))), whole, strict=True):
        for completion, other in zip(flat(of_member), flat(before), strict=True):
            assert completion.text == other.text.partition(stop)[0]
            assert completion.truncated == (stop not in other.text)
            assert other.ids[: len(completion.ids)] == completion.ids


def test_the_layers_read_their_parameters_again(case):
    written(case)
    assert all(layer.live is None and layer.group_of_row is None for layer in case[2].layers.values())


def test_bad_input_is_one_line(case, make_opt, tiny_tokenizer):
    with pytest.raises(InputError, match=r"members=6: `adapters.arena.live` must have a row for each"):
        written(case, members=6)
    with pytest.raises(InputError, match="max_new_tokens=7: must be 1 or more, and leave 2 or more of the 8 tokens"):
        written(case, max_length=8)


def test_a_model_with_a_window_is_refused(tiny_tokenizer):
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=len(tiny_tokenizer), sliding_window=4, num_key_value_heads=1, **sizes)
    with pytest.raises(InputError, match="MistralForCausalLM keeps something else than the keys and values"):
        generate_for_members(MistralForCausalLM(config), tiny_tokenizer, None, PROMPTS, sampling=SAMPLING)
