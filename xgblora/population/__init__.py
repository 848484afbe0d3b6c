"""Evolution strategies: ask for members, score them anywhere, tell their fitness; each step is a boosting round."""

from xgblora.population.members import Members
from xgblora.population.population import Population, Told
from xgblora.population.shaping import SHAPINGS

__all__ = ["SHAPINGS", "Members", "Population", "Told"]
