"""What an import brings with it, and what it does without."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "xgblora"


class TestImports:
    """What an import brings with it, and what it does without."""

    def test_importing_operations_adapters_and_zeroth_order_imports_no_heavy_package(self, python):
        program = """
            import sys, xgblora, xgblora.ops, xgblora.adapters, xgblora.tape, xgblora.zo
            print([name for name in ("transformers", "datasets", "accelerate", "matplotlib") if name in sys.modules])
        """
        assert python(program) == "[]\n"

    def test_operations_adapters_and_zeroth_order_work_without_triton_and_datasets(self, python):
        printed = python(
            """
            import sys

            class Blocker:
                def find_spec(self, name, path=None, target=None):
                    if name.partition(".")[0] in ("triton", "datasets", "transformers", "matplotlib", "yaml"):
                        raise ImportError(f"{name} is blocked")

            sys.meta_path.insert(0, Blocker())
            import torch
            import xgblora
            import xgblora.ops

            model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            adapters = xgblora.attach(model, ["0", "2"], alpha=16.0, seed=0)
            x, y = torch.randn(16, 8), torch.randint(0, 2, (16,))
            cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
            loss = lambda model, batch: cross_entropy(model(batch["x"]), batch["y"])
            zo = xgblora.ZeroOrder(adapters, loss, eps=1e-3, lr=1e-3, directions=2, seed=0)
            losses = [zo.step({"x": x, "y": y}).loss.item() for _ in range(3)]
            booster = xgblora.Booster(adapters)
            before = model(x)
            booster.merge()
            assert torch.allclose(before, model(x), atol=1e-5)
            assert all(0 < value < 10 for value in losses)
            assert "triton" not in sys.modules and "transformers" not in sys.modules
            print("works")
            """
        )
        assert printed == "works\n"

    def test_training_imports_without_datasets(self, python):
        printed = python(
            """
            import importlib.abc, sys

            class Blocker(importlib.abc.MetaPathFinder):
                def find_spec(self, name, path=None, target=None):
                    if name.partition(".")[0] in ("triton", "datasets"):
                        raise ModuleNotFoundError(f"{name} is blocked", name=name)

            sys.meta_path.insert(0, Blocker())
            import importlib.util
            found = importlib.util.find_spec
            importlib.util.find_spec = lambda name, *rest: None if name == "datasets" else found(name, *rest)
            from xgblora import XGBLoRATrainer, XGBLoRAArguments
            from xgblora.cli.train import parse
            print(parse(["--model_name=m", "--use_cpu"])[1].method)
            """
        )
        assert printed == "xgblora\n"

    def test_tasks_import_neither_torch_nor_transformers(self, python):
        modules = [f"xgblora.tasks.{path.stem}" for path in (PACKAGE / "tasks").glob("[!_]*.py")]
        assert len(modules) > 10
        program = f"""
            import importlib, sys
            for module in {modules}:
                importlib.import_module(module)
            print([name for name in ("torch", "transformers") if name in sys.modules])
        """
        assert python(program) == "[]\n"

    def test_what_a_run_left_is_read_without_a_trainer(self, python):
        program = """
            import sys, xgblora.cli.export, xgblora.cli.replay
            print([name for name in ("transformers.trainer", "xgblora.training") if name in sys.modules])
        """
        assert python(program) == "[]\n"
