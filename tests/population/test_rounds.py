"""The steps of a population as boosters: rolled back, replayed, resumed, kept in a file, exported."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import xgblora
from xgblora import Ledger
from xgblora.boosting import MergedNoise, MergeOverflow
from xgblora.boosting.finish import finish
from xgblora.boosting.ledger import _digest
from xgblora.boosting.truncation import stacked_factors
from xgblora.errors import InputError
from xgblora.ops.merge_rank1 import running_sum
from xgblora.replaying import rebuild, start_tape

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def population_of(booster, **options):
    return xgblora.Population(booster.adapters, booster, **{"sigma": 0.05, "lr": 0.05, "seed": 7, **options})


def state_of(booster):
    arena, planes = booster.adapters.arena, booster._remainders.planes if booster._remainders else []
    return [tensor.clone() for tensor in (*booster.adapters.weights(), *planes, arena.master)]


def assert_same(one, other):
    assert len(one) == len(other)
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"decay": 0.9}, {"pairs": False, "noise_reuse": 2}], ids=str)
def test_rolled_back_replayed_and_resumed_to_the_bit(world, climb, tmp_path, dtype, options):
    booster = world(dtype)
    population, states = population_of(booster, **options), []
    for _ in range(5):
        climb(population, 1, count=6)
        states.append(state_of(booster))
    booster.ledger.save(tmp_path / "ledger.safetensors")
    booster.rollback(round=2)
    assert_same(state_of(booster), states[1])
    replayed = world(dtype)
    replayed.load_ledger(tmp_path / "ledger.safetensors")
    assert_same(state_of(replayed), states[-1])
    resumed = world(dtype)
    resumed.replay(Ledger.load(tmp_path / "ledger.safetensors").first(3))
    assert_same(state_of(resumed), states[2])
    climb(population_of(resumed, **options), 2, count=6)
    assert_same(state_of(resumed), states[-1])


def test_rounds_of_both_kinds_stand_in_one_ledger(world, climb, tmp_path):
    booster = world(torch.bfloat16)
    climb(population_of(booster), 1)
    torch.manual_seed(1)
    booster.adapters.arena.master.normal_(std=0.01)
    booster.merge(step=2)
    climb(population_of(booster, decay=0.5), 2)
    booster.ledger.save(tmp_path / "ledger.safetensors")
    loaded = Ledger.load(tmp_path / "ledger.safetensors")
    assert [type(entry).__name__ for entry in loaded.boosters] == ["MergedNoise", "MergedAdapter", *["MergedNoise"] * 2]
    replayed = world(torch.bfloat16)
    replayed.replay(loaded)
    assert_same(state_of(replayed), state_of(booster))


def test_a_member_takes_12_bytes_and_a_pair_no_more(world, tmp_path):
    sizes = []
    for count in (64, 1064):
        booster = world()
        population = population_of(booster)
        population.ask(count)
        population.tell(range(count))
        booster.ledger.save(tmp_path / "ledger.safetensors")
        sizes.append((tmp_path / "ledger.safetensors").stat().st_size)
    assert sizes[1] - sizes[0] == pytest.approx(12 * 500, abs=32)


def test_earlier_boosters_fade_by_the_factor_a_round(world, climb):
    booster = world()
    base = [weight.double() for weight in booster.adapters.weights()]
    climb(population_of(booster, decay=0.5), 4)
    sums = [0.0] * len(base)
    for entry in booster.boosters:
        assert entry.decay == 0.5
        lone = world()
        lone.replay(replace(booster.ledger, boosters=[replace(entry, round=1, decay=1.0)]))
        added = [new - old for new, old in zip(lone.adapters.weights(), base, strict=True)]
        sums = [0.5 * old + new for old, new in zip(sums, added, strict=True)]
    for weight, old, total in zip(booster.adapters.weights(), base, sums, strict=True):
        torch.testing.assert_close(weight.double() - old, total, rtol=0, atol=1e-6)


def test_bf16_weights_with_their_planes_are_the_fp32_run(world, climb):
    """Nothing is lost to bf16: the same steps beside fp32 weights give the same running sums."""
    booster = world(torch.bfloat16)
    climb(population_of(booster, decay=0.9), 5)
    exact = world()
    with torch.no_grad():
        for weight, old in zip(exact.adapters.weights(), booster._base.weights(), strict=True):
            weight.copy_(old)
    for entry in booster.boosters:
        exact.merge_noise(entry.seeds, entry.coefficients, decay=entry.decay)
    for weight, plane, other in zip(
        booster.adapters.weights(), booster._remainders.planes, exact.adapters.weights(), strict=True
    ):
        assert torch.equal(running_sum(weight, plane), other)


def test_a_step_that_overflows_is_not_made(world):
    booster = world(torch.float16)
    population = population_of(booster, decay=0.5)
    population.ask(4)
    population.tell([0.0, 1.0, 2.0, 3.0])
    before = state_of(booster)
    members = population.ask(4)
    with pytest.raises(MergeOverflow, match="the merge of round 2 was not made"):
        population.tell([0.0, 1.0, 2.0, 3.0], lr=1e6)
    assert_same(state_of(booster), before)
    assert len(booster.ledger) == 1
    assert population.tell([0.0, 1.0, 2.0, 3.0]).step == members.step == 1


def test_a_tape_is_refused(world):
    booster = world()
    zo = xgblora.ZeroOrder(booster.adapters, lambda model, batch: torch.zeros(1), pairing="sequential")
    start_tape(zo, booster)
    with pytest.raises(InputError, match="recorded in the ledger alone"):
        population_of(booster)


def rewrite(path, change):
    """Change header and tensors, with a digest that fits."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["xgblora"])
    tensors = load_file(path)
    header.pop("sha256")
    change(header, tensors)
    header["sha256"] = _digest(header, tensors)
    save_file(tensors, path, metadata={"xgblora": json.dumps(header)})


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: tensors.pop("noise.seeds"),
        lambda header, tensors: tensors.update({"noise.coefficients": tensors["noise.coefficients"].double()}),
        lambda header, tensors: header["boosters"][0].update(terms=99),
        lambda header, tensors: header["boosters"][0].update(terms=-1),
        lambda header, tensors: header["boosters"][0].pop("decay") and header["boosters"][0].pop("step"),
    ],
)
def test_files_that_do_not_fit_are_refused(world, climb, tmp_path, change):
    booster = world()
    climb(population_of(booster), 2)
    booster.ledger.save(tmp_path / "ledger.safetensors")
    rewrite(tmp_path / "ledger.safetensors", change)
    with pytest.raises(InputError, match="not a readable ledger") as raised:
        Ledger.load(tmp_path / "ledger.safetensors")
    assert "\n" not in str(raised.value)


def test_without_noise_the_file_is_of_the_format_of_before(world, climb, tmp_path):
    booster = world()
    formats = []
    for _ in range(2):
        booster.ledger.save(tmp_path / "ledger.safetensors")
        with safe_open(tmp_path / "ledger.safetensors", "pt") as file:
            formats.append(json.loads(file.metadata()["xgblora"])["format"])
        climb(population_of(booster), 1)
    assert formats == ["xgblora-ledger-3", "xgblora-ledger-4"]


def boosted(make_model, steps=2, **options):
    adapters = xgblora.attach(make_model(), alpha=2.0)
    booster = xgblora.Booster(adapters)
    population = population_of(booster, lr=0.02, **options)
    for _ in range(steps):
        population.ask(4)
        population.tell([0.0, 3.0, 1.0, 2.0])
    return booster


def test_the_merged_model_is_exported(make_opt, tmp_path):
    from transformers import AutoModelForCausalLM

    booster = boosted(make_opt, decay=0.9)
    trained = {name: layer.weight.clone() for name, layer in booster.adapters.layers.items()}
    assert not finish(booster.adapters, booster, step=2, epoch=0.0)
    xgblora.export_merged(booster.adapters.model, tmp_path / "model")
    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model").named_modules())
    assert_same([loaded[name].weight.detach() for name in trained], list(trained.values()))


def test_the_boosters_are_exported_as_one_adapter(make_model, token_batch, tmp_path):
    peft = pytest.importorskip("peft")
    booster, batch = boosted(make_model, decay=0.9), token_batch()
    rank = xgblora.export_peft(booster.ledger, tmp_path / "adapter", base_model=make_model())
    assert rank is None
    adapted = peft.PeftModel.from_pretrained(make_model(), tmp_path / "adapter").eval()
    merged = rebuild(make_model(), booster.ledger).adapters.model
    with torch.no_grad():
        ours, theirs, base = (model(**batch).logits for model in (merged, adapted, make_model()))
    assert (ours - base).abs().max() > 0.05
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=2e-5)


def test_more_terms_than_a_weight_has_rank_need_a_rank(make_opt, tmp_path):
    booster = boosted(make_opt, steps=20)
    with pytest.raises(InputError, match="have rank 40, and no weight has more than 32: give a rank") as raised:
        xgblora.export_peft(booster.ledger, tmp_path / "adapter", base_model=make_opt())
    assert "\n" not in str(raised.value)
    cost = xgblora.export_peft(booster.ledger, tmp_path / "adapter", base_model=make_opt(), rank=8)
    assert 0 < cost.overall < 1
    assert {len(factors.a) for factors in stacked_factors(booster.ledger).values()} == {40}


def test_terms_are_kept_as_they_were_given(world):
    seeds, coefficients = torch.tensor([2**62, -5]), torch.tensor([0.1, -0.2])
    booster = world()
    merged = booster.merge_noise(seeds, coefficients, step=3, epoch=0.5, held_out_loss=1.5)
    seeds.zero_()
    coefficients.zero_()
    assert merged == booster.boosters[0]
    assert isinstance(merged, MergedNoise)
    assert (merged.round, merged.step, merged.epoch, merged.held_out_loss) == (1, 3, 0.5, 1.5)
    assert merged.seeds.tolist() == [2**62, -5]


def moves_as_its_members_say(model):
    """A step of one pair, the first of which won, moves every matrix by `lr` perturbations of it."""
    adapters = xgblora.attach(model, "all-linear", alpha=2.0)
    booster = xgblora.Booster(adapters)
    population = population_of(booster)
    row = population.ask(2).adapter(0).unsqueeze(0)
    before = [weight.clone() for weight in adapters.weights()]
    population.tell([1.0, 0.0])
    pairs = [pair for slot in adapters.arena.slots for pair in zip(*(part[0] for part in slot.views(row)), strict=True)]
    for old, new, (a, b) in zip(before, adapters.weights(), pairs, strict=True):
        expected = 0.05 / 0.05 * adapters.scale * torch.outer(b, a)
        torch.testing.assert_close(new - old, expected, rtol=1e-3, atol=1e-5)
        assert bool((new != old).any())


def test_every_kind_of_layer_moves_as_its_members_say(make_model):
    moves_as_its_members_say(make_model())


def test_every_expert_of_a_mixture_moves_by_noise_of_its_own(make_mixture):
    moves_as_its_members_say(make_mixture())
