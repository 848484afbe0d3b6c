"""Which texts may stand in one forward, and which rules are tried."""

import pytest
from torch import nn
from transformers import LlamaConfig

from xgblora.scoring.together import ALL, ONE_LENGTH, rules_for


def model_with(config):
    model = nn.Module()
    model.config = config
    return model


def test_groups_hold_every_text_once_the_shortest_first():
    lengths = [5, 3, 5, 9, 3]
    assert ALL.groups(lengths) == [[0, 1, 2, 3, 4]]
    assert ONE_LENGTH.groups(lengths) == [[1, 4], [0, 2], [3]]


@pytest.mark.parametrize(("longest", "limits"), [(16, ()), (17, (16,)), (40, (16,)), (65, (16, 64))])
def test_ranges_end_where_the_configuration_says_that_positions_do(longest, limits):
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope["original_max_position_embeddings"] = 16
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
    rules = rules_for(model_with(LlamaConfig(rope_parameters=rope, **sizes)), longest)
    assert (rules[0], rules[-1]) == (ALL, ONE_LENGTH)
    assert [rule.limits for rule in rules[1:-1]] == ([limits] if limits else [])
    if limits == (16,):
        assert rules[1].groups([16, 3, 17, 40]) == [[0, 1], [2, 3]]


def test_a_model_without_a_configuration_has_no_ranges():
    assert rules_for(nn.Linear(2, 2), 100) == [ALL, ONE_LENGTH]
