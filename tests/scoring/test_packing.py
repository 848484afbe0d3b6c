"""Packed batches: few positions a token, and the scores and gradients of the padded ones."""

import logging

import pytest
import torch

import xgblora
from xgblora.objectives.texts import CandidateObjective, classification
from xgblora.scoring import Collator, EncodedExample, OptionScorer
from xgblora.scoring.packing import LENGTH_MULTIPLE, lay_out
from xgblora.zo.stacking import stacked

# the first batch of SST-2's training set, as OPT's tokenizer counts it
LENGTHS = (15, 38, 10, 23, 31, 9, 11, 27, 8, 13, 10, 7, 33, 12, 14, 20)
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def plain(length: int, seed: int) -> EncodedExample:
    """One sequence, and two candidates of one token."""
    ids = torch.randint(2, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return EncodedExample((tuple(ids),), ((0, length - 1),), (((0, 5),), ((0, 6),)), seed % 2)


def forked(shared: int, *ends: int, seed: int = 0) -> EncodedExample:
    """A candidate for each end: `shared` tokens that all begin with, so many more of its own, and a last one."""
    generator = torch.Generator().manual_seed(seed)
    trunk = torch.randint(2, 60, (shared,), generator=generator).tolist()
    sequences, rows, options = [], [], []
    for place, end in enumerate(ends):
        # different first tokens, so that no more than the trunk is shared
        own = [place + 2, *torch.randint(2, 60, (end - 1,), generator=generator).tolist()]
        sequences.append((*trunk, *own))
        targets = (*sequences[-1], 7)[max(shared, 1) :]
        options.append(tuple((len(rows) + i, token) for i, token in enumerate(targets)))
        rows += [(place, len(sequences[-1]) - len(targets) + i) for i in range(len(targets))]
    return EncodedExample(tuple(sequences), tuple(rows), tuple(options), 0)


MIXED = [plain(9, 1), forked(12, 3, 5, 1), plain(3, 2), forked(0, 4, 6, seed=3), forked(5, 2, 2, seed=4), plain(20, 3)]


def without_grid(batch: dict) -> dict:
    return {name: value for name, value in batch.items() if name != "grid"}


def both(model, batch):
    """The scores of the padded and of the packed batch."""
    scorer = OptionScorer(model)
    assert scorer.packs
    return [scorer.scores(model, form) for form in (without_grid(batch), batch)]


def test_a_batch_of_sst2_runs_at_most_a_tenth_of_positions_without_a_token():
    for start in range(16):
        lengths = LENGTHS[start:] + LENGTHS[:start]
        rows, length = Collator(0)([plain(length, seed) for seed, length in enumerate(lengths)])["grid"]
        assert sum(lengths) <= rows * length <= 1.1 * sum(lengths)


@pytest.mark.parametrize("examples", [MIXED, [plain(400, 0)], [plain(1, 0)] * 3, [forked(30, *[4] * 20)]])
def test_pieces_stand_in_one_row_and_not_on_one_another(examples):
    layout = lay_out(examples)
    assert layout.length % LENGTH_MULTIPLE == 0
    owners: dict[int, tuple] = {}
    for number, example in enumerate(examples):
        rows_of_example = set()
        for place, sequence in enumerate(example.sequences):
            cells = layout.cells(number, place, len(sequence))
            assert cells == sorted(set(cells))
            assert len({cell // layout.length for cell in cells}) == 1
            rows_of_example.add(cells[0] // layout.length)
            for index, (cell, token) in enumerate(zip(cells, sequence, strict=True)):
                owner = (number, 0 if index < layout.shared[number] else place + 1, index, token)
                assert owners.setdefault(cell, owner) == owner
        assert len(rows_of_example) == 1 or not layout.shared[number]
    assert max(owners) < layout.rows * layout.length


def few_shapes(*examples) -> dict:
    return Collator(0, few_shapes=True)(list(examples))


def signature(batch: dict) -> tuple:
    return batch["grid"], *(tuple(value.shape) for value in batch.values() if isinstance(value, torch.Tensor))


def test_few_shapes_cost_little_and_are_few():
    generator = torch.Generator().manual_seed(0)
    signatures, exact, positions, tokens = set(), set(), 0, 0
    for _ in range(60):
        # 4 to 61 tokens, most of them few, as SST-2's
        lengths = (4 + 57 * torch.rand(16, generator=generator) ** 3).int().tolist()
        examples = [plain(length, seed) for seed, length in enumerate(lengths)]
        batch = few_shapes(*examples)
        signatures.add(signature(batch))
        exact.add(signature(Collator(0)(examples)))
        rows, length = batch["grid"]
        assert rows * length <= 1.2 * sum(lengths) + 16
        positions, tokens = positions + rows * length, tokens + sum(lengths)
    assert len(exact) > 50
    assert len(signatures) <= 25
    assert positions <= 1.08 * tokens


def test_few_shapes_of_long_rows_have_few_lengths():
    lengths = {few_shapes(plain(length, 0))["grid"][1] for length in range(257, 513)}
    assert lengths == set(range(288, 513, 32))


@torch.no_grad()
def test_few_shapes_give_the_same_scores(make_model):
    model = make_model()
    exact, coarse = Collator(0)(MIXED), few_shapes(*MIXED)
    assert signature(coarse) != signature(exact)
    scores, padded = both(model, coarse)[::-1]
    candidates = exact["option_mask"].any(dim=-1)
    for mine in (scores, padded):
        torch.testing.assert_close(mine[candidates], both(model, exact)[1][candidates], rtol=1e-5, atol=1e-5)


def test_long_examples_are_not_all_compared_with_one_another():
    rows, _ = Collator(0)([plain(500, seed) for seed in range(16)])["grid"]
    assert rows == 16


def test_shared_prefixes_are_run_once():
    rows, length = Collator(0)([forked(40, 4, 4, 4, 4)])["grid"]
    assert rows * length == 56


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_scores_are_those_of_the_padded_batch(make_model, dtype, attention):
    model = make_model(dtype=dtype)
    model.set_attn_implementation(attention)
    padded, packed = both(model, Collator(0)(MIXED))
    assert torch.equal(padded.isneginf(), packed.isneginf())
    real = ~padded.isneginf()
    torch.testing.assert_close(packed[real], padded[real], rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


def test_gradients_are_those_of_the_padded_batch(make_model, randomise_adapters):
    model = make_model()
    adapters = xgblora.attach(model, None, alpha=4.0)
    randomise_adapters(adapters)
    batch = Collator(0)(MIXED)
    gradients = []
    for scores in both(model, batch):
        torch.nn.functional.cross_entropy(scores, batch["label"]).backward()
        gradients.append([part.grad for layer in adapters.layers.values() for part in (layer.a, layer.b)])
        for layer in adapters.layers.values():
            layer.a.grad = layer.b.grad = None
    for packed, padded in zip(*reversed(gradients), strict=True):
        assert padded.abs().max() > 0
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_an_example_does_not_see_the_others(make_model):
    model = make_model()
    scorer = OptionScorer(model)
    others = [plain(9, 7), forked(12, 3, 5, 1, seed=9), *MIXED[2:]]
    first, second = (scorer.scores(model, Collator(0)(examples)) for examples in (MIXED, others))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    assert torch.equal(first[2:], second[2:])


@torch.no_grad()
def test_a_batch_repeated_for_several_directions_is_that_batch_several_times(make_model):
    model = make_model()
    scorer = OptionScorer(model)
    batch = Collator(0)(MIXED)
    three = scorer.scores(model, stacked(batch, 3, 3))
    assert three.shape[0] == 3 * len(MIXED)
    alone = scorer.scores(model, batch)
    for group in three.split(len(MIXED)):
        torch.testing.assert_close(group, alone, rtol=1e-5, atol=1e-5)


def test_paired_and_sequential_steps_agree_on_packed_batches(make_model):
    batch = Collator(0)(MIXED)
    gradients = []
    for pairing in ("paired", "sequential"):
        model = make_model()
        objective = CandidateObjective(model, classification)
        zo = xgblora.ZeroOrder(
            xgblora.attach(model, alpha=4.0), objective, eps=1e-2, lr=0.1, directions=2, pairing=pairing
        )
        zo.step(batch)
        # b starts at zero: the second step is the first with adapters that matter
        gradients.append(zo.step(batch).projected_grad)
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-4)


class Without(torch.nn.Module):
    """A language model that lacks something, around one that does not."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()


class WithoutPositions(Without):
    def forward(self, input_ids, attention_mask=None, use_cache=None):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


class DeafToMasks(Without):
    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
        mask = attention_mask if attention_mask is None or attention_mask.ndim == 2 else None
        return self.model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, use_cache=use_cache)


class DeafToPositions(Without):
    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
        if attention_mask is not None and attention_mask.ndim == 4:
            position_ids = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache
        )


class Refusing(Without):
    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
        if attention_mask is not None and attention_mask.ndim == 4:
            raise ValueError("a mask must be two-dimensional")
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        (WithoutPositions, "takes no position_ids"),
        (DeafToMasks, "scores are others"),
        (DeafToPositions, "scores are others"),
        (Refusing, "it cannot be called so (a mask must be two-dimensional"),
    ],
)
@torch.no_grad()
def test_a_model_that_cannot_gets_the_padded_batch_and_the_log_says_why(make_opt, caplog, lacking, reason):
    model = make_opt()
    batch = Collator(0)(MIXED)
    expected, _ = both(model, batch)
    with caplog.at_level(logging.INFO, logger="xgblora"):
        wrapped = lacking(model)
        scorer = OptionScorer(wrapped)
    assert not scorer.packs
    line = caplog.messages[-1]
    assert line.startswith("Batches are padded, not packed: ")
    assert reason in line
    torch.testing.assert_close(scorer.scores(wrapped, batch), expected, rtol=1e-5, atol=1e-5)


def test_sliding_windows_and_other_attention_kernels_are_not_tried(make_llama):
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    windowed = MistralForCausalLM(MistralConfig(vocab_size=64, num_hidden_layers=1, sliding_window=4, **sizes))
    assert not OptionScorer(windowed).packs
    whole = MistralForCausalLM(MistralConfig(vocab_size=64, num_hidden_layers=1, sliding_window=None, **sizes))
    assert OptionScorer(whole).packs
    flex = make_llama()
    flex.set_attn_implementation("flex_attention")
    assert not OptionScorer(flex).packs


def test_the_trial_leaves_the_modes_of_the_model_as_they_were(make_opt):
    model = make_opt().train()
    model.model.decoder.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert OptionScorer(model).packs
    assert [module.training for module in model.modules()] == before
