"""Architectures from their scores to PEFT, and docs/models.md, which says what came of each.

A few that differ, or with XGBLORA_MODELS=all every one (some minutes). `python scripts/models_page.py` writes the page.
"""

import os
from pathlib import Path

import pytest
import transformers
from transformers import CONFIG_MAPPING

pytest.importorskip("peft")

from tests.matrix.architectures import ARCHITECTURES
from tests.matrix.checks import examine

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
# packed and spared; without positions; windows; recurrent; two kinds of mixture; latent attention; shared key and value
# layers; tokens first; looking ahead; weights that are read without a call
FEW = ("llama", "bart", "gemma2", "rwkv", "qwen3_moe", "gpt_oss", "deepseek_v2", "falcon", "xlnet", "bert", "mamba")
KINDS = ARCHITECTURES if os.environ.get("XGBLORA_MODELS") == "all" else FEW


@pytest.mark.parametrize("kind", KINDS)
def test_an_architecture_does_what_the_page_says(kind, tmp_path):
    if kind not in CONFIG_MAPPING:
        pytest.skip("this release of transformers does not have it")
    assert str(examine(kind, tmp_path / "adapter")) in PAGE.splitlines()


def test_the_page_is_about_these_architectures():
    if f"transformers {transformers.__version__}." not in PAGE:
        pytest.skip("the page was written with another release of transformers")
    rows = [line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    rows = rows[-len(ARCHITECTURES) :]
    assert rows == sorted(ARCHITECTURES)
    assert len(ARCHITECTURES) >= 60
