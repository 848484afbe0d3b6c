"""Members as rows of `live`, as tensors, and as PEFT folders that another program loads."""

import json

import pytest
import torch
from safetensors.torch import load_file

import xgblora
from xgblora.errors import InputError

FILE = "adapter_model.safetensors"
LAYER = "base_model.model.model.decoder.layers.0.self_attn.q_proj"


def population_of(model, *, kind="weights", **options):
    adapters = xgblora.attach(model, alpha=2.0)
    return xgblora.Population(adapters, xgblora.Booster(adapters), sigma=0.02, lr=0.01, kind=kind, seed=5, **options)


def rows_of(batch, count):
    return {name: part.repeat(count, *[1] * (part.ndim - 1)) for name, part in batch.items()}


@pytest.mark.parametrize("kind", ["weights", "adapter"])
def test_group_g_is_member_g_and_a_folder_of_it_computes_the_same_in_peft(make_model, token_batch, tmp_path, kind):
    peft = pytest.importorskip("peft")
    model, batch = make_model(), token_batch()
    population = population_of(model, kind=kind)
    if kind == "adapter":
        population.adapters.arena.master.add_(0.05)
    members = population.ask(4)
    with torch.no_grad():
        unperturbed = model(**batch).logits
        with members.attached():
            together = model(**rows_of(batch, 4)).logits.chunk(4)
        with members.attached(2, 3):
            alone = model(**batch).logits
        assert torch.equal(model(**batch).logits, unperturbed), "the adapter in training is read again"
    torch.testing.assert_close(together[2], alone, rtol=1e-4, atol=1e-5)
    for number in (0, 1, 3):
        members.save_peft(tmp_path / str(number), number, base_model=make_model())
        adapted = peft.PeftModel.from_pretrained(make_model(), tmp_path / str(number)).eval()
        with torch.no_grad():
            theirs = adapted(**batch).logits
        torch.testing.assert_close(theirs, together[number], rtol=1e-4, atol=2e-5)
        assert (theirs - unperturbed).abs().max() > 0.01
        tensors = members.tensors(number)
        assert all(torch.equal(tensors[name], part) for name, part in load_file(tmp_path / str(number) / FILE).items())


def test_the_files_are_what_servers_with_lora_take(make_opt, tmp_path):
    """vLLM: full names under `base_model.model.`, `lora_A` [r, K], `lora_B` [N, r], no bias, no DoRA, nothing else."""
    members = population_of(make_opt()).ask(2)
    members.save_peft(tmp_path / "member", 0)
    config = json.loads((tmp_path / "member" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 1, 1, "none")
    assert config["use_dora"] is config["use_rslora"] is False
    assert not config.get("modules_to_save")
    tensors = load_file(tmp_path / "member" / FILE)
    assert tensors[f"{LAYER}.lora_A.weight"].shape == (1, 32)
    assert tensors[f"{LAYER}.lora_B.weight"].shape == (32, 1)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors)
    assert {name.rpartition(".lora_")[0].removeprefix("base_model.model.") for name in tensors} == set(
        config["target_modules"]
    )


def test_for_a_server_of_the_base_a_member_holds_the_boosters_too(make_opt):
    population = population_of(make_opt())
    population.ask(4)
    population.tell([0.0, 3.0, 1.0, 2.0])
    members = population.ask(4)
    whole, alone = members.tensors(1, boosters=True), members.tensors(1)
    name = f"{LAYER}.lora_A.weight"
    assert (whole[name].shape[0], alone[name].shape[0]) == (3, 1)
    assert torch.equal(whole[name][2:], alone[name])
    assert members.tensors(1, boosters=True, rank=2)[name].shape[0] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_rows_are_the_cast_members(make_opt, dtype):
    members = population_of(make_opt(dtype=dtype)).ask(6)
    arena = members.booster.adapters.arena
    with members.attached(1, 4):
        rows = arena.live.clone()
    assert (rows.dtype, rows.shape[0]) == (dtype, 3)
    for row, number in zip(rows, (1, 2, 3), strict=True):
        for slot in arena.slots:
            for ours, exact in zip(*(slot.views(x.unsqueeze(0)) for x in (row, members.adapter(number))), strict=True):
                assert torch.equal(ours, exact.to(dtype))
    assert torch.equal(arena.live, arena.master.to(dtype).expand(3, -1))


def test_members_that_are_not_there(make_opt):
    members = population_of(make_opt()).ask(2)
    assert torch.equal(members.adapter(-1), members.adapter(1))
    with pytest.raises(IndexError):
        members.adapter(2)
    for start, stop in ((0, 3), (-1, 1), (1, 1)):
        with (
            pytest.raises(InputError, match=f"members {start} to {stop}: must be a range within 0 to 2"),
            members.attached(start, stop),
        ):
            pass
