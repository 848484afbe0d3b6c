"""Completions: what the members of a population write after prompts, all of them in one batch."""

from xgblora.completions.members import Completion, generate_for_members
from xgblora.completions.sampling import Sampling

__all__ = ["Completion", "Sampling", "generate_for_members"]
