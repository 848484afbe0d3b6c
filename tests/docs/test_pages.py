"""Every Python block and every command of the pages: the blocks run, the commands are taken as they are printed."""

import copy
import re

import pytest
import torch

import xgblora
from tests.docs.pages import PAGES, ROOT, blocks, commands
from tests.fixtures.models import tiny_opt


def texts(rows: int = 4) -> dict:
    ids = torch.randint(2, 60, (rows, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def objective(model, batch):
    return -model(**batch).logits[:, -1].log_softmax(-1)[:, 7]


def of_python() -> dict:
    """What docs/python.md leaves to its reader."""
    weight, vectors, master = torch.randn(6, 8), torch.randn(2, 8), torch.zeros(30)
    merged = [torch.randn(6, 8).bfloat16()]
    return {
        "torch": torch,
        "model": tiny_opt(),
        "objective": objective,
        "batches": [texts()] * 300,
        **{
            "x": torch.randn(2, 3, 8),
            "weight": weight,
            "bias": None,
            "a": vectors,
            "b": torch.randn(2, 6),
            "scale": 16.0,
        },
        "group_of_row": torch.tensor([1, 0, 0, 1, 1, 0], dtype=torch.int32),
        **{"a_q": vectors, "a_k": vectors, "a_v": vectors},
        **{"master": master, "live": torch.empty(2, 30), "signs": torch.tensor([1.0, -1.0]), "seed": 3, "eps": 1e-3},
        **{"seeds": torch.tensor([3]), "projected_grads": torch.tensor([0.5]), "lr": 1e-3},
        **{"coefficients": torch.tensor([0.1])},
        **{"weights": merged, "adapters": [(torch.randn(8), torch.randn(6))]},
    }


def of_objectives(folder) -> dict:
    model, spare = tiny_opt(), tiny_opt()
    ids = texts(8)["input_ids"]
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    return {
        "xgblora": xgblora,
        "model": model,
        "adapters": xgblora.attach(spare, alpha=16.0),
        "args": xgblora.XGBLoRAArguments(
            output_dir=str(folder), max_steps=2, eval_strategy="no", use_cpu=True, disable_tqdm=True
        ),
        "data": data,
        "reward": lambda words: (words == 7).float().mean(dim=-1),
    }


def of_rewards(tokenizer) -> dict:
    """What docs/rewards.md leaves to its reader."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    model = tiny_opt(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=1)
    adapters = xgblora.attach(model, alpha=1.0)
    booster = xgblora.Booster(adapters)
    return {
        **{"xgblora": xgblora, "torch": torch, "tokenizer": tokenizer, "model": model, "adapters": adapters, "step": 0},
        "population": xgblora.Population(adapters, booster, sigma=0.1, lr=0.1),
        **{"prompt": "1 + 1 = ", "completion": "2", "row": {"answer": 2}, "origin": "sums.jsonl line 1"},
        **{"x": torch.randn(4, 8), "weight": torch.randn(6, 8), "bias": None},
        **{"a": torch.randn(8, 8), "b": torch.randn(8, 6), "scale": 1.0},
    }


class TestPython:
    """The blocks of a page, one after the other, with what the page leaves to its reader."""

    def run(self, page: str, names: dict) -> dict:
        (path,) = (path for path in PAGES if path.name == page)
        for block in blocks(path, "python"):
            exec(block, names)
        return names

    def test_the_page_about_python(self):
        given = of_python()
        (first, second) = blocks(ROOT / "docs" / "python.md", "python")
        names = dict(given)
        exec(first, names)
        assert len(names["booster"].boosters) == 3
        exec(second, {"xgblora": xgblora, **given})

    def test_the_page_about_objectives(self, tmp_path):
        names = self.run("objectives.md", of_objectives(tmp_path))
        names["trainer"].train()
        assert names["trainer"].state.global_step == 2
        assert names["zo"].step(texts()).loss.item() == pytest.approx(1.0, abs=0.5)

    def test_the_page_about_all_parameters(self):
        names = self.run("full_parameters.md", {"xgblora": xgblora, "model": tiny_opt(), "objective": objective})
        names["zo"].step(texts())
        assert len(list(names["tape"].records())) == 1

    def test_the_page_about_rewards(self, tiny_tokenizer, tmp_path, monkeypatch):
        first, checks, *others = blocks(ROOT / "docs" / "rewards.md", "python")
        names = {}
        exec(first, names)
        assert names["told"].round == 3
        monkeypatch.chdir(tmp_path)
        (tmp_path / "checks.py").write_text(f"{checks}\n\ndef short(prompt, completion, row):\n    return 1\n")
        (tmp_path / "sums.jsonl").write_text('{"question": "the film"}\n')
        names = of_rewards(tiny_tokenizer)
        for block in others:
            exec(block, names)
        assert names["scored"][0].value == 1.1
        assert len(names["texts"]) == 64
        assert names["y"].shape == (4, 6)

    def test_no_page_has_a_block_that_is_not_run(self):
        with_blocks = {path.name for path in PAGES if blocks(path, "python")}
        assert with_blocks == {"README.md", "python.md", "objectives.md", "full_parameters.md", "rewards.md"}


def printed(program: str) -> list[tuple[str, list[str]]]:
    return [(path.name, command) for path in PAGES for command in commands(path, program)]


def as_given(words: list[str]) -> list[str]:
    """A command without the words that stand for others: "..." and shell variables."""
    return [word for word in words if word != "..." and not word.startswith("$")]


class TestCommands:
    """Flags that a page prints are flags."""

    @pytest.mark.parametrize(("page", "command"), printed("xgblora-train"))
    def test_training(self, page, command):
        from xgblora.cli.train import parse

        # raises what it refuses
        assert parse([*as_given(command), "--use_cpu"])

    @pytest.mark.parametrize(("page", "command"), printed("xgblora-compare"))
    def test_comparing(self, page, command):
        from xgblora.cli.compare import build_parser, renamed_rank

        build_parser(show_all=True).parse([*renamed_rank(as_given(command)), "--use_cpu"])

    @pytest.mark.parametrize(("page", "command"), printed("xgblora-export"))
    def test_exporting(self, page, command):
        from xgblora.cli.export import parse

        assert str(parse(command)[0]) == command[0]

    @pytest.mark.parametrize(("page", "command"), printed("xgblora-replay"))
    def test_replaying(self, page, command):
        from xgblora.cli.replay import parse

        assert str(parse(command)[0]) == command[0]

    @pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
    def test_scripts_that_a_page_names_are_there(self, path):
        for name in re.findall(r"\b(?:scripts|docs|tests|benchmarks)/[\w/-]+\.(?:py|md|yaml|toml)", path.read_text()):
            assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target
