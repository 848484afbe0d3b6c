"""Rewards: what a completion is worth, by a function of texts that runs in processes of its own. No torch in here."""

from xgblora.rewards.functions import Reward, parse_rewards
from xgblora.rewards.pool import RewardPool, Scored, Text
from xgblora.rewards.prompts import Prompt, prompts_by_chat, prompts_by_template

__all__ = [
    "Prompt",
    "Reward",
    "RewardPool",
    "Scored",
    "Text",
    "parse_rewards",
    "prompts_by_chat",
    "prompts_by_template",
]
