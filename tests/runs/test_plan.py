"""`plan`: what a run's flags decide, before there are data and a model."""

from pathlib import Path

import pytest

from xgblora.errors import InputError
from xgblora.objectives.of_task import WITHOUT_GRADIENT
from xgblora.runs.plan import check_start, plan, sampling_seed
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.task_flags import TaskArguments


@pytest.fixture
def flags(tmp_path):
    """A function `(num_dev, **flags)` that gives the flags of a run on a model without weights and without any data."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def make(num_dev: int = 4, **given):
        task = TaskArguments(model_name=str(model), data_dir=str(tmp_path / "no data"), num_dev=num_dev)
        return task, XGBLoRAArguments(**{"output_dir": str(tmp_path / "run"), "use_cpu": True, **given})

    return make


def test_it_needs_neither_data_nor_model_and_writes_nothing(flags, tmp_path):
    planned = plan(*flags())
    assert planned.chosen.name == planned.task.task_name == "SST2"
    assert planned.folder.path == tmp_path / "run"
    assert planned.first_step == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_flags_that_it_was_given_stay_as_they_are(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task, args = flags(num_dev=0, output_dir=None)
    before = dict(vars(args))
    planned = plan(task, args)
    assert vars(args) == before
    assert task.task_name is None
    assert planned.args.eval_strategy == "no"
    assert Path(planned.args.output_dir) == Path("runs", "model-SST2-xgblora-zo-seed0")


def test_last_is_the_newest_whole_checkpoint_or_a_new_run(flags, tmp_path):
    planned = plan(*flags(resume_from_checkpoint="last"))
    assert planned.args.resume_from_checkpoint is None
    torn = tmp_path / "run" / "checkpoint-7"
    torn.mkdir(parents=True)
    assert plan(*flags(resume_from_checkpoint="last")).first_step == 0
    # named, the folder of the run that it is of says where it goes on
    assert plan(*flags(resume_from_checkpoint=str(torn))).first_step == 7
    with pytest.raises(InputError, match="holds a run already"):
        plan(*flags())


def test_the_examples_are_drawn_by_their_own_seed_or_that_of_the_run():
    assert sampling_seed(TaskArguments(), 3) == 3
    assert sampling_seed(TaskArguments(train_set_seed=0), 3) == 0


@pytest.mark.parametrize("objective", WITHOUT_GRADIENT)
@pytest.mark.parametrize("given", [{"xgblora_reinit": "residual"}, {"lora": True, "lora_init": "residual"}], ids=str)
def test_a_start_by_a_gradient_that_the_objective_does_not_have_is_refused(flags, objective, given):
    _, args = flags(**given)
    flag = [*given][-1]
    said = f"^{flag}=residual: needs a gradient, objective={objective} has none; use --{flag} data$"
    with pytest.raises(InputError, match=said):
        check_start(objective, args)
    check_start("option_nll", args)
    _, args = flags(**{**given, flag: "data"})
    check_start(objective, args)
    _, args = flags(**given, trainer="none")
    check_start(objective, args)
