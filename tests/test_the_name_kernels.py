"""The name `kernels`, which a package on PyPI has too, and transformers imports when it finds it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


class TestTheNameKernels:
    """PyPI has a package that is imported as `kernels` too, and transformers imports it when it finds it."""

    @pytest.fixture
    def other_kernels(self, tmp_path) -> Path:
        """A folder with a package `kernels` in it, as pip would install it."""
        site = tmp_path / "site"
        (site / "kernels").mkdir(parents=True)
        names = ("Device", "LayerRepository", "Mode", "register_kernel_mapping", "replace_kernel_forward_from_hub")
        stubs = "".join(f"class {name}:\n    pass\n\n\n" for name in names)
        (site / "kernels" / "__init__.py").write_text(f'WHOSE = "the other one"\n{stubs}')
        (site / "kernels" / "layer.py").write_text('PLACE = "submodule of the other one"\n')
        metadata = site / "kernels-0.17.2.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.17.2\n")
        return site

    def test_from_the_repository_root_transformers_imports_without_the_other_package(self, python):
        program = """
            import transformers
            from transformers import OPTConfig, OPTForCausalLM, Trainer
            import xgblora.kernels
            print(xgblora.kernels.__file__)
        """
        assert Path(python(program, path=(ROOT,)).strip()) == ROOT / "kernels" / "__init__.py"

    def test_with_the_other_package_the_name_gives_that_one(self, python, other_kernels):
        program = """
            import kernels, xgblora.kernels
            import kernels.layer
            from kernels import Device
            print(kernels.WHOSE, kernels.layer.PLACE, xgblora.kernels.__file__, sep="|")
            print(hasattr(xgblora.kernels, "WHOSE"))
        """
        ours, marked = python(program, path=(ROOT, other_kernels)).splitlines()
        whose, place, file = ours.split("|")
        assert whose == "the other one"
        assert place == "submodule of the other one"
        assert Path(file) == ROOT / "kernels" / "__init__.py"
        assert marked == "False"

    def test_the_order_of_the_imports_does_not_matter(self, python, other_kernels):
        program = "import xgblora.kernels, kernels; print(kernels.WHOSE, xgblora.kernels.__name__)"
        assert python(program, path=(ROOT, other_kernels)) == "the other one xgblora.kernels\n"

    def test_the_root_as_the_current_folder_is_seen_as_the_root(self, python, other_kernels):
        program = "import sys; sys.path.insert(0, ''); import kernels; print(kernels.WHOSE)"
        assert python(program, path=(other_kernels,)) == "the other one\n"

    def test_transformers_imports_with_the_other_package(self, python, other_kernels):
        program = """
            import transformers
            from transformers import OPTConfig, OPTForCausalLM
            import kernels
            OPTForCausalLM(OPTConfig(vocab_size=8, hidden_size=8, word_embed_proj_dim=8, num_hidden_layers=1, ffn_dim=8,
                                     num_attention_heads=2, max_position_embeddings=8))
            print(kernels.WHOSE)
        """
        assert python(program, path=(ROOT, other_kernels)) == "the other one\n"

    def test_without_the_other_package_the_name_is_ours_and_imports_no_triton(self, python):
        printed = python("import sys, kernels; print(kernels.__file__, 'triton' in sys.modules)", path=(ROOT,))
        assert printed.split() == [str(ROOT / "kernels" / "__init__.py"), "False"]
