"""Bad input ends with status 2 and one line that names the flag, the value and what is right; nothing is written."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def assert_refused(ending, *said: object) -> None:
    assert ending.status == 2
    assert len(ending.errors) == 1, ending.errors
    (line,) = ending.errors
    for part in said:
        assert str(part) in line, line
    assert ending.output == ""
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--lora_alpha=0"], ["lora_alpha=0", "positive"]),
        (["--lora_alpha=-16"], ["lora_alpha=-16", "positive"]),
        (["--lora_alpha=nan"], ["lora_alpha=nan", "positive finite"]),
        (["--lora_alpha=inf"], ["lora_alpha=inf", "finite"]),
        (["--lora", "--lora_r=0"], ["lora_r=0", "1 or more"]),
        (["--zo_eps=0"], ["zo_eps=0", "positive"]),
        (["--zo_eps=-0.001"], ["zo_eps=-0.001", "positive"]),
        (["--zo_eps=nan"], ["zo_eps=nan"]),
        (["--bf16"], ["bf16=True", "--dtype bfloat16"]),
        (["--zo_directions=0"], ["zo_directions=0", "1 or more"]),
        (["--xgblora_steps_per_iteration=-5"], ["xgblora_steps_per_iteration=-5", "0 or more"]),
        (["--xgblora_merge_frequency=-1"], ["xgblora_merge_frequency=-1", "0 or more"]),
        (["--max_steps=0"], ["max_steps=0", "1 or more"]),
        (["--learning_rate=-0.1"], ["learning_rate=-0.1", "0 or more"]),
        (["--learning_rate=nan"], ["learning_rate=nan"]),
        (["--weight_decay=-1"], ["weight_decay=-1", "0 or more"]),
        (["--warmup_steps=-1"], ["warmup_steps=-1", "0 or more"]),
        (["--seed=-1"], ["seed=-1"]),
        (["--seed=5000000000"], ["seed=5000000000", "4294967295"]),
        (["--train_set_seed=5000000000"], ["train_set_seed=5000000000"]),
        (["--xgblora", "--lora"], ["--xgblora", "--lora", "choose one"]),
        (["--num_train=1000"], ["num_train=1000", "48 examples"]),
        (["--num_train=44", "--num_dev=5"], ["num_train=44", "num_dev=5", "48 examples"]),
        (["--num_eval=17"], ["num_eval=17", "16 examples"]),
        (["--num_train=0"], ["num_train=0", "1 or more"]),
        (["--objective=mse"], ["--objective", "mse", "option_nll", "language_model"]),
        (["--objective=f1"], ["objective=f1", "chosen, not generated"]),
        (["--objective=accuracy", "--trainer=regular"], ["objective=accuracy", "no gradient", "--trainer zo"]),
        (["--task_name=SST3"], ["task_name=SST3", "SST2"]),
        (["--max_length=1"], ["max_length=1", "2 or more"]),
        (["--max_length=2"], ["max_length=2", "train.tsv line"]),
        (["--target_modules", "q_projection"], ["target_modules=q_projection", "q_proj", "v_proj", "fc1"]),
        (["--target_modules", "q_proj", "nothing"], ["target_modules=nothing", "q_proj"]),
        (["--target_modules", "("], ["target_modules=(", "regular expression"]),
        (["--learning_rat=1"], ["--learning_rat", "did you mean --learning_rate?"]),
        (["--lora-alpa=1"], ["--lora-alpa", "unknown flag", "did you mean --lora_alpha?"]),
        (["--zzzzz"], ["--zzzzz: unknown flag"]),
        (["-lr=1"], ["-lr=1: unknown flag; here it is --learning_rate"]),
        (["--batch-size", "4"], ["--batch-size: unknown flag; here it is --per_device_train_batch_size"]),
        (["--device", "cuda"], ["--device: unknown flag; a GPU is used where there is one", "--use_cpu"]),
        (["--save_strategy", "step"], ["save_strategy=step: step is not a valid", "'steps'"]),
        (["spam"], ["spam"]),
        (["--lr_scheduler_type=sideways"], ["sideways"]),
        (["--eval_strategy=sometimes"], ["sometimes"]),
        (["--report_to=paper"], ["report_to=paper", "tensorboard"]),
        (["--deepspeed=ds.json"], ["deepspeed=ds.json", "one device"]),
        (["--train_sampling_strategy=group_by_length"], ["train_sampling_strategy=group_by_length", "random"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_a_flag_that_is_wrong(train_command, flags, said):
    assert_refused(train_command(*flags), *said)


def test_reporting_to_what_is_not_installed(train_command, monkeypatch):
    monkeypatch.setattr("xgblora.training.check_flags.get_available_reporting_integrations", lambda: ["tensorboard"])
    assert_refused(train_command("--report_to=wandb"), "report_to=wandb", "not installed")


@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
def test_an_optimizer_of_a_package_that_is_not_installed(train_command, monkeypatch, dry):
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    ending = train_command("--trainer=regular", "--optim=adamw_8bit", *dry)
    assert_refused(ending, "optim=adamw_8bit: ", "install `bitsandbytes`")


def test_a_flag_of_transformers_that_cannot_work_here(train_command):
    assert_refused(
        train_command("--trainer=regular", "--use_liger_kernel"), "use_liger_kernel=True: it replaces the layers"
    )


@pytest.mark.parametrize("name, said", [("x", "must be loss or accuracy"), ("eval_f1", "must be loss or accuracy")])
def test_a_metric_that_is_not_measured(train_command, name, said):
    assert_refused(train_command(f"--metric_for_best_model={name}"), f"metric_for_best_model={name}", said)


def test_a_value_of_two_lines_is_said_in_one(train_command):
    assert_refused(train_command("--overwrite", "a\nb"), "--overwrite", "got a b")


@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
def test_an_output_folder_that_cannot_be_made(train_command, tmp_path, dry):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "run"
    assert_refused(train_command(f"--output_dir={place}", *dry), f"output_dir={place}", "is a file")


def test_a_process_of_its_own_writes_one_line_too(tmp_path):
    program = "from xgblora.cli.train import main; main()"
    flags = [f"--model_name={tmp_path / 'nowhere'}", "--use_cpu"]
    process = subprocess.run([sys.executable, "-c", program, *flags], capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr == f"error: model_name={tmp_path / 'nowhere'}: there is no such folder\n"
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_without_the_file(train_command, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(train_command(f"--data_dir={empty}"), f"data_dir={empty}", "train.tsv", "dev.tsv")


def test_a_data_folder_that_is_not_there(train_command, tmp_path):
    assert_refused(train_command(f"--data_dir={tmp_path / 'no'}"), f"data_dir={tmp_path / 'no'}", "train.tsv")


def test_a_data_file_with_a_wrong_label(train_command, review_folder, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(review_folder, folder)
    with open(folder / "dev.tsv", "a", encoding="utf-8") as file:
        file.write("so so\t2\n")
    assert_refused(train_command(f"--data_dir={folder}"), "dev.tsv line 18", "label=2", "0 or 1")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "some/path/nowhere", "~/nowhere"])
def test_a_model_path_that_is_not_there(train_command, name):
    assert_refused(train_command(f"--model_name={name}"), f"model_name={name}", "no such folder")


def test_a_model_folder_without_config(train_command, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert_refused(train_command(f"--model_name={folder}"), f"model_name={folder}", "config.json")


@pytest.mark.parametrize("torn", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_folder_with_a_torn_file(train_command, tiny_model_folder, tmp_path, torn):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    content = (folder / torn).read_bytes()
    (folder / torn).write_bytes(content[: len(content) // 2])
    assert_refused(train_command(f"--model_name={folder}"), f"model_name={folder}", "cannot be loaded")


def test_an_option_that_is_empty_after_tokenization(train_command, tiny_model_folder, tiny_tokenizer, tmp_path):
    """A tokenizer that knows no letter beyond those of the prompt, and drops the others."""
    from tokenizers import Tokenizer, models, normalizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={"<pad>": 0, "</s>": 1, "a": 2, "I": 3}, merges=[]))
    tokenizer.normalizer = normalizers.Replace("terrible", "")
    tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    ending = train_command(f"--model_name={folder}")
    assert_refused(ending, "train.tsv line", "' terrible'", "empty after tokenization")


def test_a_file_in_the_place_of_the_output_folder(train_command, tmp_path):
    (tmp_path / "file").write_text("mine")
    ending = train_command(f"--output_dir={tmp_path / 'file'}")
    assert_refused(ending, f"output_dir={tmp_path / 'file'}", "is a file")
    assert (tmp_path / "file").read_text() == "mine"


class TestFlagFiles:
    """YAML and JSON files of flags that are wrong."""

    def test_a_missing_file(self, train_command):
        assert_refused(train_command("nowhere.yaml", defaults=False), "nowhere.yaml", "no such file")

    @pytest.mark.parametrize(
        "text, said",
        [
            ("lora_alfa: 3", "unknown flag lora_alfa"),
            ("- a\n- b", "must hold flags as `name: value` lines"),
            ("just words", "must hold flags"),
            ("a: [1, 2", "flags.yaml line 1: is no YAML"),
            ("1: 2", "unknown flag 1"),
            ("seed: 1\nseed: 2", "line 2: is no YAML (seed is there twice)"),
            ("seed: &a 1\nmax_steps: *a", "line 2: is no YAML (an alias (*) is not taken here"),
            ("seed: 2026-13-45", "is no YAML (month must be in 1..12"),
            ("lr_scheduler_kwargs: {a: 2026-01-01}", "lr_scheduler_kwargs must be a value"),
            ("target_modules: [[q_proj]]", "target_modules must be a value"),
            ("seed: !!python/object/apply:os.getcwd []", "line 1: is no YAML (could not determine a constructor"),
            ('task_name: "\\ud83d"', "line 1: is no YAML (a text has half of a surrogate pair)"),
        ],
    )
    def test_a_file_that_is_wrong_inside(self, train_command, flag_file, text, said):
        path = flag_file(text)
        assert_refused(train_command(path, defaults=False), path, said)

    def test_a_value_out_of_range(self, train_command, flag_file, tiny_model_folder):
        path = flag_file(f"model_name: {tiny_model_folder}\nlora_alpha: 0")
        assert_refused(train_command(path, defaults=False), "lora_alpha=0")

    @pytest.mark.parametrize("line", ["trainer: first", "max_steps: many", "dtype: float8", "xgblora: perhaps"])
    def test_a_value_of_the_wrong_kind_is_found_as_on_the_command_line(self, train_command, flag_file, line):
        ending = train_command(flag_file(line), defaults=False)
        assert ending.status == 2
        # argparse, or the kind's own check, names the flag
        assert line.split(":")[0] in ending.errors[-1] or line.split(": ")[1] in ending.errors[-1]
        assert list(Path.cwd().iterdir()) == []
