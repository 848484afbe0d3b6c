"""Models small enough for every test, toys, samples, and runs of `xgblora-train` that several tests look at."""

import csv
import json
import logging
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # before torch is imported, and for the processes that tests start: torch's threads spin while they wait, and beside
    # other busy processes the demonstration ran 20 times slower with two threads on two cores than with one
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import torch
from safetensors.torch import load_file
from torch import nn

import xgblora
from xgblora.tasks import Sample

SHARED_MODELS = Path(__file__).parent.parent.parent / "shared" / "models"
SHARED_DATA = SHARED_MODELS.parent / "data"
VOCABULARY = 64


def tiny_opt(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides):
    """Two layers of OPT with dropout in its configuration, in eval mode; biases are not zero."""
    from transformers import OPTConfig, OPTForCausalLM

    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "ffn_dim": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "dropout": 0.1,
        "init_std": 0.1,
        "pad_token_id": 1,
    }
    return _initialised(OPTForCausalLM, OPTConfig(**{**settings, **overrides}), seed, dtype)


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides):
    """Two layers of Llama with grouped key-value heads, so that q_proj and v_proj differ in shape; in eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
        "pad_token_id": 0,
    }
    return _initialised(LlamaForCausalLM, LlamaConfig(**{**settings, **overrides}), seed, dtype)


def tiny_gpt2(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides):
    """Two layers of GPT-2, whose linear layers are transformers' `Conv1D`; biases are not zero; in eval mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "initializer_range": 0.1,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
    }
    return _initialised(GPT2LMHeadModel, GPT2Config(**{**settings, **overrides}), seed, dtype)


def _initialised(model_class, config, seed, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    # not `model.to(dtype)`: that would convert the rotary tables too, which `from_pretrained` leaves in fp32
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()


MODELS = {"opt": tiny_opt, "llama": tiny_llama, "gpt2": tiny_gpt2}


@pytest.fixture(params=MODELS)
def make_model(request):
    """A function `(seed, dtype, **config)` that makes a tiny model: OPT, Llama and GPT-2, each in a run of the test."""
    return MODELS[request.param]


@pytest.fixture
def make_opt():
    """A function `(seed, dtype, **config)` that makes a tiny OPT."""
    return tiny_opt


@pytest.fixture
def make_llama():
    """A function `(seed, dtype, **config)` that makes a tiny Llama."""
    return tiny_llama


@pytest.fixture
def make_gpt2():
    """A function `(seed, dtype, **config)` that makes a tiny GPT-2."""
    return tiny_gpt2


@pytest.fixture
def token_batch():
    """A function that makes `input_ids` and `attention_mask` [B, T], right-padded to different lengths."""

    def make(examples: int = 4, length: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        input_ids = torch.randint(3, VOCABULARY, (examples, length), generator=generator)
        lengths = torch.randint(2, length + 1, (examples, 1), generator=generator)
        attention_mask = (torch.arange(length) < lengths).long()
        return {"input_ids": input_ids * attention_mask + (1 - attention_mask), "attention_mask": attention_mask}

    return make


@pytest.fixture
def shared_model():
    """A function that gives the folder of a shared model or tokenizer, and skips the test where it is missing."""

    def folder(name: str) -> Path:
        if not (SHARED_MODELS / name / "tokenizer.json").exists():
            pytest.skip(f"../shared/models/{name} is not here")
        return SHARED_MODELS / name

    return folder


@pytest.fixture
def shared_tokenizer(shared_model):
    """A function `(name)` that loads the tokenizer of a shared model."""
    from transformers import AutoTokenizer

    return lambda name: AutoTokenizer.from_pretrained(shared_model(name))


@pytest.fixture
def randomise_adapters():
    """A function that fills an `AdapterSet` with adapters that matter, as training would."""

    def fill(adapters, seed: int = 0, std: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for slot in adapters.arena.slots:
                for part in adapters.arena.a_and_b(slot):
                    part.copy_(torch.randn(part.shape, generator=generator) * std)
        adapters.arena.restore()

    return fill


class Int8Linear(nn.Module):
    """A linear layer that keeps its weight in int8 with one fp32 scale, as quantised layers do."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.detach().abs().max() / 127
        self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


@pytest.fixture
def quantise():
    """A function that puts `Int8Linear` in the place of every linear layer called q_proj or v_proj, in place."""

    def replace(model: nn.Module) -> nn.Module:
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if name in ("q_proj", "v_proj"):
                    setattr(module, name, Int8Linear(child))
        return model

    return replace


class Toy(nn.Module):
    """Two linear layers whose sizes are multiples of nothing, and a loss [B] over them: `model(x)` for x [B, 5]."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(5, 3), nn.Linear(3, 7)
        self.to(dtype)

    def forward(self, x):
        y = self.second(torch.tanh(self.first(x.to(self.first.bias.dtype))))
        return (y.float() - 1).square().mean(dim=1)


@pytest.fixture
def make_toy():
    """A function `(dtype, seed)` that makes a `Toy`."""
    return Toy


@pytest.fixture
def train_toy():
    """A function that trains a `Toy` by zeroth order with a tape, 3 merges and a rest, and gives its booster.

    The losses of the steps in `skipped` are not finite.
    """

    def train(
        *,
        dtype=torch.float32,
        rounding="remainder",
        directions=1,
        rank=1,
        steps=14,
        skipped=(),
        seed=5,
        rollback=None,
        optimizer="sgd",
        reinit="kaiming",
        colsample=1.0,
        shrinkage=1.0,
        **estimate,
    ) -> xgblora.Booster:
        def objective(model, batch):
            return model(batch["x"]) * (float("nan") if zo.step_index in skipped else 1.0)

        adapters = xgblora.attach(Toy(dtype), ["first", "second"], alpha=2.0, rank=rank, seed=seed)
        booster = xgblora.Booster(adapters, rounding=rounding, reinit=reinit, colsample=colsample)
        zo = xgblora.ZeroOrder(
            adapters,
            objective,
            eps=1e-2,
            lr=0.05,
            directions=directions,
            seed=seed,
            weight_decay=0.01,
            optimizer=optimizer,
            **estimate,
        )
        xgblora.start_tape(zo, booster)
        generator = torch.Generator().manual_seed(seed)
        for step in range(1, steps + 1):
            zo.estimate({"x": torch.randn(4, 5, generator=generator)})
            zo.update(lr=0.05 / step)
            if step % 4 == 0:
                booster.merge(step=step, shrinkage=shrinkage)
            if step == rollback:
                booster.rollback(round=1)
        return booster

    return train


REVIEW_SENTENCES = [
    ("a warm , funny and wise film", 1),
    ("the plot is dull and the jokes are stale", 0),
    ("an absolute delight from start to finish", 1),
    ("bland , slow and much too long", 0),
    ("the cast is superb", 1),
    ("not worth the time", 0),
    ("a gem", 1),
    ("it never finds its feet , and the ending is a mess", 0),
]


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer of a few sentences; it prepends `</s>` as OPT's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{sentence} It was {word}" for sentence, _ in REVIEW_SENTENCES for word in ("terrible", "great")]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="</s>", padding_side="left"
    )


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory, tiny_tokenizer) -> Path:
    """A folder with a tiny randomly initialised OPT and its tokenizer, as `from_pretrained` loads them."""
    folder = tmp_path_factory.mktemp("models") / "tiny-opt"
    tiny_opt(seed=0, vocab_size=len(tiny_tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=1).save_pretrained(
        folder
    )
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def review_folder(tmp_path_factory) -> Path:
    """A folder with SST-2's files: 48 rows to train on and 16 to evaluate on."""
    folder = tmp_path_factory.mktemp("reviews")
    for name, copies in (("train.tsv", 6), ("dev.tsv", 2)):
        rows = [
            f"{sentence} {'indeed ' * copy}\t{label}" for copy in range(copies) for sentence, label in REVIEW_SENTENCES
        ]
        (folder / name).write_text("\n".join(["sentence\tlabel", *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def shared_data():
    """A function that gives a folder of the shared data, and skips the test where it is missing."""

    def folder(name: str) -> Path:
        if not (SHARED_DATA / name).is_dir():
            pytest.skip(f"../shared/data/{name} is not here")
        return SHARED_DATA / name

    return folder


@contextmanager
def unchanged_logger():
    """Give the logger of xgblora its handlers and its level back: commands set them for their terminal."""
    logger = logging.getLogger("xgblora")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="session")
def tiny_flags(tiny_model_folder, review_folder) -> list[str]:
    """Flags of `xgblora-train` for a run on 12 examples, 3 batches an epoch; where it writes is not among them.

    In float32, whatever units this machine has: what `--dtype auto` chooses differs between them.
    """
    flags = {
        "model_name": tiny_model_folder,
        "dtype": "float32",
        "data_dir": review_folder,
        "num_train": 12,
        "num_dev": 4,
        "num_eval": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 5,
        "eval_steps": 10,
        "seed": 3,
        "use_cpu": "true",
        "disable_tqdm": "true",
    }
    return [f"--{name}={value}" for name, value in flags.items()]


@pytest.fixture(scope="session")
def train_tiny(tiny_flags):
    """A function `(output_dir, *flags)` that runs `xgblora-train` with the `tiny_flags` in this process."""
    from xgblora.cli.train import main

    def train(output_dir: Path | None, *given: object) -> Path | None:
        folder = [f"--output_dir={output_dir}"] if output_dir is not None else []
        with unchanged_logger():
            main([*tiny_flags, *folder, *map(str, given)])
        return output_dir

    return train


@pytest.fixture(scope="session")
def plain_scores():
    """The mean log-probability of each candidate's option tokens, by a forward of its own, without padding or cache."""

    def one_candidate_at_a_time(model, tokenizer, samples) -> list[list[float]]:
        scores = []
        for sample in samples:
            scores.append([])
            for text in sample.candidates:
                encoding = tokenizer(text, return_offsets_mapping=True)
                ids = torch.tensor([encoding["input_ids"]])
                start = next(i for i, (_, end) in enumerate(encoding["offset_mapping"]) if end > len(sample.prompt))
                count = ids.shape[1] - start
                with torch.no_grad():
                    logits = model(ids[:, :-1], use_cache=False, logits_to_keep=count).logits[0]
                chosen = logits.log_softmax(dim=-1)[torch.arange(count), ids[0, start:]]
                scores[-1].append(chosen.mean().item())
        return scores

    return one_candidate_at_a_time


@pytest.fixture
def samples():
    """Candidates of one token and of several, two to four of them, long and short prompts."""
    choices = [
        ("a gem It was", ("terrible", "great"), 1),
        ("the cast It", ("is superb", "was terrible and slow"), 1),
        ("bland , slow and much too long It was", ("great", "a great delight", "a", "slow and much too long"), 3),
        ("x", ("y", "z z z z z z"), 0),
    ]
    return [
        Sample.of_choices(
            prompt,
            [f"{prompt} {answer}" for answer in answers],
            right,
            f"sample {number}",
            sfc_prompt="It was",
            sfc_candidates=[f"It was {answer}" for answer in answers],
        )
        for number, (prompt, answers, right) in enumerate(choices)
    ]


class Run:
    """The folder of a run, with its files read."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def losses(self) -> list[tuple[str, str]]:
        """(step, loss) as they are written."""
        with open(self.folder / "step_loss.csv", encoding="utf-8", newline="") as file:
            return [(row["step"], row["loss"]) for row in csv.DictReader(file)]

    @property
    def metrics(self) -> dict:
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))

    @property
    def log(self) -> list[str]:
        """The lines of train.log without their times."""
        return [line[20:] for line in (self.folder / "train.log").read_text(encoding="utf-8").splitlines()]

    @property
    def merge_lines(self) -> list[str]:
        """Where the log says that it merged: "step 10"."""
        start = "XGBLoRA: Merging and reinitializing at "
        return [line.removeprefix(start) for line in self.log if line.startswith(start)]

    def entries(self, name: str) -> list[dict]:
        """The objects of a .jsonl file."""
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]

    def weights(self) -> dict:
        """The tensors of the saved model."""
        return load_file(self.folder / "model" / "model.safetensors")


@pytest.fixture(scope="session")
def run(tmp_path_factory, train_tiny):
    """A function `(*flags)` that trains in a new folder, once for the same flags, and gives the `Run`."""
    done: dict[tuple[str, ...], Run] = {}

    def once(*flags: object) -> Run:
        key = tuple(map(str, flags))
        if key not in done:
            done[key] = Run(train_tiny(tmp_path_factory.mktemp("runs") / "run", *flags))
        return done[key]

    return once


@pytest.fixture(scope="session")
def run_in(train_tiny):
    """A function `(folder, *flags)` that trains into `folder` and gives the `Run`."""
    return lambda folder, *flags: Run(train_tiny(folder, *flags))


@pytest.fixture(scope="session")
def merged_by_steps(run) -> Run:
    """40 zeroth-order steps, merged after every 10, evaluated after every 10."""
    return run("--xgblora", "--xgblora_steps_per_iteration=10", "--max_steps=40")


@pytest.fixture(scope="session")
def merged_by_epochs(run) -> Run:
    """10 zeroth-order steps of 3 an epoch: three epochs and a third, merged at the end of each, evaluated there."""
    return run("--xgblora", "--xgblora_merge_frequency=1", "--max_steps=10", "--eval_strategy=epoch")
