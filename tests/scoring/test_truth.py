"""Ways to run texts are held to one plain forward of each, and left where they give other scores."""

import logging

import pytest
import torch
import transformers

from xgblora.errors import InputError
from xgblora.scoring import Collator, EncodedExample, OptionScorer, log_probabilities
from xgblora.scoring.truth import truth_of

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 0,
}
# of tables of rotary positions up to 16 tokens, and of others beyond
LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}


def from_config(kind, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(transformers.CONFIG_MAPPING[kind](**settings)).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    return model


def bart():
    """A decoder that counts positions from its first token, padding or not."""
    sizes = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
    of_sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    settings = {"vocab_size": 64, "d_model": 32, "is_decoder": True, "is_encoder_decoder": False, "pad_token_id": 0}
    return from_config("bart", **settings, **of_sides)


def rwkv():
    """A recurrent model, which reads padding as tokens."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}
    return from_config("rwkv", **sizes, context_length=64)


def longrope():
    rope = {**LONG_ROPE, "original_max_position_embeddings": 16}
    positions = {"original_max_position_embeddings": 16, "max_position_embeddings": 64}
    return from_config("phi3", **SIZES, num_key_value_heads=4, rope_parameters=rope, **positions)


def dynamic_rope():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    return from_config("llama", **SIZES, num_key_value_heads=2, rope_parameters=rope, max_position_embeddings=16)


def text(length: int, seed: int) -> EncodedExample:
    ids = torch.randint(3, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return EncodedExample((tuple(ids),), ((0, length - 1), (0, length // 2)), (((0, 7),), ((0, 9), (1, 11))), 0)


EXAMPLES = [text(length, seed) for seed, length in enumerate((5, 32, 17, 24, 9))]


@torch.no_grad()
def plainly(model, example: EncodedExample) -> list[float]:
    """The scores of one text alone, by a forward without anything else."""
    logits = model(input_ids=torch.tensor([example.sequences[0]])).logits[0].log_softmax(dim=-1)
    return [
        sum(logits[example.rows[row][1], token].item() for row, token in option) / len(option)
        for option in example.options
    ]


@pytest.mark.parametrize("make", [bart, rwkv, longrope])
def test_training_and_evaluation_score_each_text_as_alone(make, caplog):
    model = make()
    expected = torch.tensor([plainly(model, example) for example in EXAMPLES])
    with caplog.at_level(logging.INFO, logger="xgblora"):
        scorer = OptionScorer(model, longest=32)
    assert not scorer.packs
    assert [line for line in caplog.messages if line.startswith("Batches are padded on the right")]
    for some in (EXAMPLES, EXAMPLES[::-1], EXAMPLES[:1] * 2):
        scores = scorer.scores(model, Collator(0)(some))
        wanted = torch.stack([expected[EXAMPLES.index(example)] for example in some])
        torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-4)
    evaluated = torch.tensor(log_probabilities(model, EXAMPLES))
    torch.testing.assert_close(evaluated, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [bart, longrope])
def test_gradients_reach_what_runs_on_the_right(make):
    model = make()
    scores = OptionScorer(model, longest=32).scores(model, Collator(0)(EXAMPLES))
    weight = model.get_output_embeddings().weight
    (gradient,) = torch.autograd.grad(scores.sum(), weight)
    losses = 0.0
    for example in EXAMPLES:
        logits = model(input_ids=torch.tensor([example.sequences[0]])).logits[0].log_softmax(dim=-1)
        for option in example.options:
            losses = losses + sum(logits[example.rows[row][1], token] for row, token in option) / len(option)
    (expected,) = torch.autograd.grad(losses, weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_texts_that_are_longer_than_was_said_are_tried_when_they_come(caplog):
    model = longrope()
    scorer = OptionScorer(model, longest=16)
    model.config.max_position_embeddings = 16
    expected = torch.tensor([plainly(model, example) for example in EXAMPLES])
    torch.testing.assert_close(scorer.scores(model, Collator(0)(EXAMPLES)), expected, rtol=1e-4, atol=1e-4)


def test_a_model_whose_scores_depend_on_the_text_before_is_refused():
    with pytest.raises(InputError, match="LlamaForCausalLM: a text of up to 32 tokens has other scores in a batch, or"):
        OptionScorer(dynamic_rope(), longest=32)
    with pytest.raises(InputError, match="give a smaller --max_length"):
        log_probabilities(dynamic_rope(), EXAMPLES)
    short = dynamic_rope()
    assert OptionScorer(short, longest=16).packs


def test_a_model_that_looks_ahead_is_refused():
    model = from_config("bert", **SIZES)
    with pytest.raises(InputError, match=r"BertLMHeadModel looks ahead: .* tokens? depends on those that come later"):
        OptionScorer(model)
    with pytest.raises(InputError, match="BertLMHeadModel looks ahead"):
        log_probabilities(model, EXAMPLES)
    assert OptionScorer(from_config("bert", **SIZES, is_decoder=True)) is not None


def test_a_model_that_cannot_read_a_plain_text_is_refused_in_one_line(make_opt):
    with pytest.raises(InputError, match="OPTForCausalLM cannot read a text of 100 tokens") as raised:
        truth_of(make_opt(max_position_embeddings=64), 100)
    assert "\n" not in str(raised.value)


def test_of_a_model_that_gives_no_numbers_nothing_is_told(make_opt):
    model = make_opt()
    model.get_output_embeddings().weight.data.fill_(float("nan"))
    assert OptionScorer(model).packs


def test_the_trial_is_as_long_as_the_longest_text(make_opt):
    model, seen = make_opt(), []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape[-1]))
    truth = truth_of(model, 50)
    assert max(seen) == truth.longest == 50
    assert min(seen) == 3
    assert truth_of(model).longest == 32


def test_the_trial_leaves_generator_and_modes_alone(make_opt):
    model, state = make_opt().train(), torch.get_rng_state()
    model.model.decoder.layers[0].eval()
    before = [module.training for module in model.modules()]
    truth_of(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == before
