"""vLLM: what it asks of a LoRA adapter, as its release 0.33.0 has it (vllm/config/lora.py, vllm/lora)."""

from xgblora.destinations.destination import Adapter, Destination
from xgblora.errors import InputError

# what --max-lora-rank can be, and what it is where nothing is said
_RANKS, _DEFAULT_RANK = (1, 8, 16, 32, 64, 128, 256, 320, 512), 16
# models of its own that declare no `SupportsLoRA`; what it does not know at all runs on transformers' code, which does
_TAKE_NONE = {
    *("BloomForCausalLM", "Cohere2MoeForCausalLM", "DbrxForCausalLM", "FalconForCausalLM", "FalconMambaForCausalLM"),
    *("GPT2LMHeadModel", "GPTJForCausalLM", "Gemma3nForCausalLM", "HrmTextForCausalLM", "Mamba2ForCausalLM"),
    *("MambaForCausalLM", "MiMoV2FlashForCausalLM", "StableLmForCausalLM", "Zamba2ForCausalLM"),
}
# those whose `embedding_modules` name the output embeddings
_ADAPT_OUTPUT_EMBEDDINGS = {
    *("ApertusForCausalLM", "Ernie4_5ForCausalLM", "Exaone4ForCausalLM", "ExaoneMoeForCausalLM", "FalconH1ForCausalLM"),
    *("GraniteForCausalLM", "GraniteMoeForCausalLM", "GraniteMoeHybridForCausalLM", "GraniteMoeSharedForCausalLM"),
    *("JambaForCausalLM", "Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "Llama4ForCausalLM", "LlamaForCausalLM"),
    *("MiniCPM3ForCausalLM", "MixtralForCausalLM", "NemotronForCausalLM", "NemotronHForCausalLM", "Phi3ForCausalLM"),
    *("Qwen3ForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"),
}
_OUTPUT_EMBEDDINGS = "lm_head"


def setting_for(rank: int) -> int | None:
    """The smallest --max-lora-rank that takes `rank`; None where none does."""
    return next((step for step in _RANKS if step >= rank), None)


def about_rank(rank: int) -> str:
    """What vLLM needs for an adapter of `rank`, in one line."""
    setting = setting_for(rank)
    if setting is None:
        return f"rank {rank}: more than vLLM takes ({_RANKS[-1]}); --rank {_RANKS[-1]} writes the nearest that it takes"
    if setting <= _DEFAULT_RANK:
        return f"rank {rank}: vLLM takes it as it is (--max-lora-rank is {_DEFAULT_RANK} where it is not given)"
    return f"rank {rank}: vLLM takes it with --max-lora-rank {setting}"


def _rank(adapter: Adapter) -> str:
    setting = setting_for(adapter.rank)
    if setting is None:
        most = _RANKS[-1]
        raise InputError(f"for=vllm: rank {adapter.rank} is more than its --max-lora-rank takes, {most}; --rank {most}")
    flag = "" if setting <= _DEFAULT_RANK else f" --max-lora-rank {setting}"
    return f"rank {adapter.rank} of {max(setting, _DEFAULT_RANK)} that --enable-lora{flag} has room for"


def _model(adapter: Adapter) -> str:
    if adapter.model_class in _TAKE_NONE:
        raise InputError(f"for=vllm: takes no adapter for {adapter.model_class}; --format merged goes there")
    if adapter.model_class is None:
        return "the configuration of the base is not here, so whether it takes adapters for it is not known"
    return f"takes adapters for {adapter.model_class}"


def _layers(adapter: Adapter) -> str:
    adapted = [name for name in adapter.layers if name.rpartition(".")[2] == _OUTPUT_EMBEDDINGS]
    if adapted and adapter.model_class not in _ADAPT_OUTPUT_EMBEDDINGS:
        of = f" of {adapter.model_class}" if adapter.model_class else ""
        raise InputError(f"for=vllm: adapts no output embeddings{of} ({adapted[0]}); --format merged goes there")
    return (
        f"adapts linear layers, {len(adapter.layers)} here; it rounds fp32 adapters to the dtype that the model runs in"
    )


DESTINATION = Destination("vllm", (_rank, _model, _layers))
