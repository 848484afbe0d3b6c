"""`--recipe`: flags under one name, from the command line, a file, and in a comparison."""

import json

import pytest

from xgblora import demo
from xgblora.cli import compare
from xgblora.cli.train import parse
from xgblora.errors import InputError
from xgblora.training.recipes import RECIPES

BOOST = RECIPES["boost"].flags
RECIPE = ("--model_name=some-model", "--use_cpu", "--recipe=boost")
PLAIN = ("--model_name=some-model", "--use_cpu")


def differing(ours, theirs) -> dict:
    """The flags of two runs that have not the same value, with that of the first."""
    return {name: value for name, value in ours.to_dict().items() if theirs.to_dict()[name] != value}


def changed(*flags: str) -> dict:
    """What the recipe makes of a run with `flags`."""
    (_, ours), (_, theirs) = parse([*RECIPE, *flags]), parse([*PLAIN, *flags])
    return {name: value for name, value in differing(ours, theirs).items() if not name.endswith("_dir")}


def test_it_sets_what_it_says():
    assert changed() == {name: value for name, value in BOOST.items() if changed_by_default(name, value)}
    _, args = parse(list(RECIPE))
    assert {name: getattr(args, name) for name in BOOST} == BOOST


def changed_by_default(name, value):
    return getattr(parse(list(PLAIN))[1], name) != value


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("target_modules", ["q_proj"]),
        ("xgblora_layers", "0.0:0.5"),
        ("xgblora_reinit", "kaiming"),
        ("xgblora_steps_per_iteration", 7),
        ("learning_rate", 0.5),
    ],
)
def test_each_part_is_overridden_wherever_it_stands(flag, value):
    word = f"--{flag}={value[0] if isinstance(value, list) else value}"
    for words in ([*RECIPE, word], [word, *RECIPE]):
        _, args = parse(words)
        assert {name: getattr(args, name) for name in BOOST} == {**BOOST, flag: value}


@pytest.mark.parametrize("rule", ["--xgblora_merge_frequency=2", "--xgblora_adaptive_merge"])
def test_another_rule_of_merging_takes_the_place_of_steps(rule):
    _, args = parse([*RECIPE, rule, "--eval_strategy=steps", "--eval_steps=5"])
    assert args.xgblora_steps_per_iteration == 0
    assert args.xgblora_reinit == BOOST["xgblora_reinit"]


def test_plain_lora_takes_layers_and_rate_and_full_parameters_nothing():
    assert changed("--lora").keys() == {"target_modules", "xgblora_layers", "learning_rate"}
    assert changed("--full") == {}
    assert changed("--lora=false", "--full=false") == changed()


def test_the_demonstration_is_made_by_it_at_a_rate_of_its_own():
    task, args = parse(["--use_cpu"])
    assert task.recipe == "boost"
    assert {name: getattr(args, name) for name in BOOST} == {**BOOST, "learning_rate": 1e-3}
    assert parse(["--full", "--use_cpu"])[1].learning_rate == demo.LEARNING_RATE_OF_FULL_PARAMETERS
    assert parse(["--objective=accuracy", "--use_cpu"])[1].xgblora_reinit == "data"


def test_from_a_file(tmp_path):
    path = tmp_path / "flags.yaml"
    path.write_text("model_name: m\nrecipe: boost\nxgblora_layers: '0.0:1.0'\n", encoding="utf-8")
    task, args = parse([str(path), "--use_cpu", "--learning_rate=0.25"])
    assert task.recipe == "boost"
    wanted = {**BOOST, "xgblora_layers": "0.0:1.0", "learning_rate": 0.25}
    assert {name: getattr(args, name) for name in BOOST} == wanted


def test_one_that_there_is_not():
    with pytest.raises(InputError, match=r"^recipe=best: must be one of boost$"):
        parse([*PLAIN, "--recipe=best"])


def test_the_block_names_it(train_command):
    ending = train_command("--recipe=boost", "--max_steps=2", "--num_dev=0")
    assert ending.status == 0, ending.errors
    lines = ending.output.splitlines()
    assert f"Recipe: boost: {RECIPES['boost'].about}" in lines
    assert "Merge rule in force: merge every 50 steps" in lines
    assert "Reinitialisation: residual" in lines


class TestInAComparison:
    @pytest.fixture
    def planned(self, tiny_flags, tmp_path):
        """A function `(*flags, variants)` that gives what each run's flags come to, by the method's name."""

        def plan(*flags, variants="") -> dict[str, dict]:
            (tmp_path / "variants.yaml").write_text(variants, encoding="utf-8")
            words = [flag for flag in tiny_flags if not flag.startswith("--seed")]
            words += [f"--output_root={tmp_path / 'cmp'}", "--seeds", "0", *flags]
            words += [f"--variants={tmp_path / 'variants.yaml'}"] if variants else []
            return {run.method.name: run.configuration for run in compare.plan(words).planned}

        return plan

    def test_of_all_methods(self, planned):
        runs = planned("--recipe=boost", "--methods", "lora_zo", "xgblora_zo", "mezo_full")
        # the tiny run's own
        wanted = {**json.loads(json.dumps(BOOST)), "learning_rate": 1e-2}
        assert {name: runs["xgblora_zo"][name] for name in BOOST} == wanted
        assert runs["xgblora_zo"]["recipe"] == "boost"
        assert runs["lora_zo"]["target_modules"] == ["all-linear"]
        assert (runs["lora_zo"]["xgblora_reinit"], runs["lora_zo"]["merge_rule"]) == (
            "kaiming",
            "no merge during training",
        )
        assert runs["mezo_full"]["target_modules"] is None

    def test_of_a_variant_beside_others(self, planned):
        runs = planned(
            *("--xgblora_steps_per_iteration=3", "--methods", "mine", "xgblora_zo"),
            variants="mine:\n  base: xgblora_zo\n  recipe: boost\n  xgblora_layers: '0.0:1.0'\n",
        )
        wanted = {**BOOST, "xgblora_layers": "0.0:1.0"}
        assert {name: runs["mine"][name] for name in BOOST} == wanted
        others = runs["xgblora_zo"]
        assert (others["xgblora_steps_per_iteration"], others["xgblora_reinit"]) == (3, "kaiming")

    def test_one_that_there_is_not_is_told_by_the_variant(self, planned):
        with pytest.raises(InputError, match=r"^mine: recipe=best: must be one of boost$"):
            planned("--methods", "mine", variants="mine:\n  base: xgblora_zo\n  recipe: best\n")

    def test_a_start_without_a_gradient_is_told_by_the_method(self, planned):
        with pytest.raises(
            InputError, match=r"^xgblora_zo: xgblora_reinit=residual: needs a gradient, objective=accuracy"
        ):
            planned("--methods", "lora_zo", "xgblora_zo", "--objective=accuracy", "--xgblora_reinit=residual")
