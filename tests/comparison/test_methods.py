"""Methods, variants and the flags that each run gets."""

from dataclasses import replace

import pytest

from xgblora.comparison.methods import METHODS, UNLESS_NAMED, Method, choose, choose_seeds, read_variants
from xgblora.errors import InputError
from xgblora.training.recipes import RECIPES

COMMON = {"lora_alpha": 8.0, "lora_r": 4, "xgblora_steps_per_iteration": 100, "xgblora_merge_frequency": 1}
KNOWN = {"xgblora_steps_per_iteration", "learning_rate", "zo_eps", "lora_r", "recipe"}


@pytest.mark.parametrize("name", UNLESS_NAMED)
def test_alpha_rank_and_merging_are_said_to_every_run(name):
    assert METHODS[name].settings(COMMON, {}).keys() >= COMMON.keys()


def test_boosting_has_rank_1_and_merging_by_steps_never_merges_at_epochs():
    settings = METHODS["xgblora_zo"].settings(COMMON, {})
    assert (settings["lora_r"], settings["lora_alpha"], settings["xgblora"], settings["lora"]) == (1, 8.0, True, False)
    assert (settings["xgblora_steps_per_iteration"], settings["xgblora_merge_frequency"]) == (100, 0)


def test_merging_by_epochs_stays():
    settings = METHODS["xgblora_fo"].settings({**COMMON, "xgblora_steps_per_iteration": 0}, {})
    assert (settings["xgblora_merge_frequency"], settings["trainer"]) == (1, "regular")


def test_plain_lora_has_its_rank_and_neither_merges_nor_rounds():
    settings = METHODS["lora_zo"].settings(COMMON, {})
    assert (settings["lora_r"], settings["lora"]) == (4, True)
    assert (settings["xgblora_steps_per_iteration"], settings["xgblora_merge_frequency"]) == (0, 0)
    assert settings["staged_eval"] is settings["xgblora_adaptive_merge"] is False
    assert settings["early_stopping_rounds"] == 0


def test_full_parameters_are_given_no_flag_of_adapters():
    full = METHODS["mezo_full"]
    assert full.settings(COMMON, {"learning_rate": 1e-6}) == {"trainer": "zo", "full": True, "learning_rate": 1e-6}
    words = ["--lora_r", "4", "--seed=1", "--target_modules", "q_proj", "v_proj", "--lora-alpha=8", "--max_steps", "-1"]
    words += ["--staged_eval", "--xgblora_steps_per_iteration", "10", "--zo_pairing=paired", "--zo_eps", "1e-3"]
    assert full.shared(words) == ["--seed=1", "--max_steps", "-1", "--zo_eps", "1e-3"]
    assert METHODS["lora_zo"].shared(words) == words
    assert not full.takes("rounding")
    assert full.takes("zo_directions")


def test_a_variant_has_its_own_flags_and_a_swept_value_wins():
    late = Method("late", boosts=True, trainer="zo", flags={"xgblora_steps_per_iteration": 2000})
    assert late.settings(COMMON, {})["xgblora_steps_per_iteration"] == 2000
    assert late.settings(COMMON, {"xgblora_steps_per_iteration": 5})["xgblora_steps_per_iteration"] == 5


class TestARecipeOfAVariant:
    """It goes before what all methods share, and after the variant's own flags and swept values."""

    def settings(self, base, swept=None, **flags):
        return replace(METHODS[base], flags={"recipe": "boost", **flags}).settings(COMMON, swept or {})

    def test_it_goes_before_what_all_methods_share(self):
        settings = self.settings("xgblora_zo")
        assert settings.items() >= {**RECIPES["boost"].flags, "recipe": "boost", "lora_alpha": 8.0, "lora_r": 1}.items()

    def test_own_flags_and_swept_values_go_before_it(self):
        settings = self.settings("xgblora_zo", {"learning_rate": 0.5}, xgblora_reinit="data")
        assert (settings["learning_rate"], settings["xgblora_reinit"]) == (0.5, "data")
        assert settings["xgblora_layers"] == RECIPES["boost"].flags["xgblora_layers"]

    def test_plain_lora_takes_its_layers_and_its_rate(self):
        settings = self.settings("lora_zo")
        assert settings["target_modules"] == ["all-linear"]
        assert (settings["xgblora_steps_per_iteration"], settings["xgblora_reinit"]) == (0, "kaiming")

    def test_full_parameters_take_nothing_of_it(self):
        assert self.settings("mezo_full") == {"trainer": "zo", "full": True, "recipe": "boost"}

    def test_one_that_there_is_not(self):
        with pytest.raises(InputError, match=r"^recipe=best: must be one of boost$"):
            self.settings("xgblora_zo", recipe="best")


def test_all_methods_of_adapters_are_compared_unless_some_are_named():
    variant = Method("mine", boosts=True, trainer="zo")
    assert [method.name for method in choose(None, {"mine": variant})] == [*UNLESS_NAMED, "mine"]
    assert "mezo_full" not in UNLESS_NAMED
    assert choose(["mezo_full"], {}) == [METHODS["mezo_full"]]
    assert choose(["mine", "lora_zo"], {"mine": variant}) == [variant, METHODS["lora_zo"]]


def test_variants_are_read(tmp_path):
    path = tmp_path / "variants.yaml"
    path.write_text("late:\n  base: xgblora_zo\n  xgblora_steps_per_iteration: 2000\n  learning_rate: 1e-3\n")
    flags = {"xgblora_steps_per_iteration": 2000, "learning_rate": "1e-3"}
    assert read_variants(path, KNOWN) == {"late": Method("late", boosts=True, trainer="zo", flags=flags)}


def test_a_variant_may_call_the_rank_as_the_command_line_does(tmp_path):
    path = tmp_path / "variants.yaml"
    path.write_text("wide: {base: lora_zo, lora_rank: 8}")
    assert read_variants(path, KNOWN)["wide"].flags == {"lora_r": 8}


def test_a_variant_of_full_parameters_is_one(tmp_path):
    path = tmp_path / "variants.yaml"
    path.write_text("mezo:\n  base: mezo_full\n  learning_rate: 1e-6\n")
    (mezo,) = read_variants(path, KNOWN).values()
    assert mezo.full
    assert choose(None, {"mezo": mezo})[-1] is mezo


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "must hold"),
        ("[1, 2", " line 1: is no YAML"),
        ("- a", "must hold"),
        ("a: 3", "a: must have `base: METHOD`"),
        ("a: {learning_rate: 1}", "a: must have `base: METHOD`"),
        ("a: {base: mezo}", "base=mezo: must be one of lora_zo"),
        ("a: {base: lora_zo, learning_rat: 1}", "unknown flag learning_rat"),
        ("a: {base: lora_zo, lora_rank: 8, lora_r: 8}", "lora_rank and lora_r are one flag"),
        ("a: {base: lora_zo, seed: 1}", "seed is set by the comparison"),
        ("a: {base: mezo_full, lora_r: 1}", "lora_r makes no difference to mezo_full"),
        ("a: {base: lora_fo, zo_eps: 1}", "zo_eps makes no difference to lora_fo"),
        ("a: {base: lora_zo, learning_rate: }", "learning_rate has no value"),
        ("lora_zo: {base: lora_zo}", "lora_zo: is a method already"),
        ("'a/b': {base: lora_zo}", "a/b: a name is of letters"),
    ],
)
def test_a_variant_that_is_wrong(tmp_path, text, said):
    path = tmp_path / "variants.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_variants(path, KNOWN)
    assert str(error.value).startswith(f"variants={path}")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_seeds_and_methods_are_there_once():
    assert choose_seeds([3, 1]) == [3, 1]
    with pytest.raises(InputError, match="seeds=1: is given twice"):
        choose_seeds([1, 2, 1])
    with pytest.raises(InputError, match="seeds=-1: must be from 0"):
        choose_seeds([-1])
    with pytest.raises(InputError, match="methods=lora_zo: is given twice"):
        choose(["lora_zo", "lora_zo"], {})
    with pytest.raises(InputError, match="methods=mezo: must be one of lora_zo, xgblora_zo, lora_fo, xgblora_fo"):
        choose(["mezo"], {})
