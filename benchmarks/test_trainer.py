"""The demonstration's steps as `XGBLoRATrainer` takes them, against `ZeroOrder.step` on the same batches."""

import copy
import gc

import pytest
import torch

import xgblora
from benchmarks.measure import compare
from benchmarks.models import on_device
from xgblora import demo
from xgblora.objectives.of_task import prepare_objective
from xgblora.runs.language_model import load_model
from xgblora.tasks import choose_task, sample_sets
from xgblora.training import XGBLoRAArguments, XGBLoRATrainer

STEPS, EXAMPLES = 40, 16


@pytest.fixture
def trainer_of(device, tmp_path):
    """A function `(model, objective, train)` that makes a trainer of `STEPS` steps with its files, without a bar."""

    def make(model, objective, train) -> XGBLoRATrainer:
        args = XGBLoRAArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=EXAMPLES,
            max_steps=STEPS,
            learning_rate=2e-3,
            xgblora_steps_per_iteration=STEPS,
            eval_strategy="no",
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
        )
        return XGBLoRATrainer(
            model, args, objective=objective.objective, train_dataset=train, data_collator=objective.collate
        )

    return make


def test_trainer_against_bare_steps(benchmark, device, trainer_of):
    flags = demo.flags()
    model, tokenizer = load_model(flags["model_name"], dtype="float32", device=device)
    task = choose_task(flags["task_name"], None)
    samples = sample_sets(task.load(flags["data_dir"]), num_train=STEPS * EXAMPLES, num_dev=0, num_eval=1, seed=0).train
    bare_model = copy.deepcopy(model)
    objective, bare_objective = (
        prepare_objective("classification", task, of, tokenizer, max_length=128, max_new_tokens=1)
        for of in (model, bare_model)
    )
    trainer = trainer_of(model, objective, [objective.to_train(sample) for sample in samples])
    batches = [on_device(batch, device) for batch in trainer.get_train_dataloader()]
    zo = xgblora.ZeroOrder(xgblora.attach(bare_model, alpha=16.0, seed=0), bare_objective.objective, lr=2e-3)

    def bare() -> list[torch.Tensor]:
        # as transformers' loop begins; it takes as long as ten steps
        gc.collect()
        return [zo.step(batch).loss for batch in batches]

    losses = torch.stack(bare())
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(losses[:10].mean().item(), rel=1e-6)
    compare(benchmark, "trainer", {"trainer": trainer.train, "bare": bare}, rounds=3, device=device)
