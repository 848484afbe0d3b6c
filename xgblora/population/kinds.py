"""What members of a population perturb, by name; a new kind is a class of the same shape in a file of its own."""

from xgblora.population.adapter_noise import AdapterNoise
from xgblora.population.weight_noise import WeightNoise

Kind = WeightNoise | AdapterNoise
KINDS: dict[str, Kind] = {"weights": WeightNoise(), "adapter": AdapterNoise()}
