"""The destinations that `--for` knows, by name."""

from xgblora.destinations import llama_cpp, transformers, vllm
from xgblora.destinations.destination import Destination

DESTINATIONS: dict[str, Destination] = {
    destination.name: destination for destination in (vllm.DESTINATION, llama_cpp.DESTINATION, transformers.DESTINATION)
}
