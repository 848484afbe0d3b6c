"""transformers' causal language models, each built small from its configuration: 2 layers of width 32."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 97
# what stands large in default configurations, by all names that it has
_NAMES = {
    32: "hidden_size d_model n_embd dim embedding_size word_embed_proj_dim attention_hidden_size dim_model embed_dim "
    "input_embedding_size lru_width",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
    "num_encoder_layers num_key_value_heads n_kv_heads num_kv_heads num_experts_per_tok moe_topk moe_top_k "
    "linear_num_key_heads linear_num_value_heads eos_token_id",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads qk_rope_head_dim rotary_dim num_experts num_local_experts "
    "n_routed_experts mamba_n_heads mamba_num_heads time_step_rank laurel_rank",
    8: "head_dim dim_head attention_head_dim qk_nope_head_dim v_head_dim d_kv kv_lora_rank q_lora_rank kv_channels "
    "mamba_d_state state_size ssm_state_size sliding_window hidden_size_per_layer_input",
    16: "moe_intermediate_size expert_ffn_hidden_size mamba_d_head mamba_head_dim linear_key_head_dim "
    "linear_value_head_dim attention_window_size",
    64: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_inner d_ff dim_ff dff ffn_hidden_size "
    "dense_ffn_hidden_size shared_expert_intermediate_size feed_forward_size shared_intermediate_size",
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
    128: "max_position_embeddings n_positions n_ctx max_seq_len context_length",
    1: "n_group topk_group first_k_dense_replace bos_token_id",
    0: "pad_token_id",
}
SIZES = {name: size for size, names in _NAMES.items() for name in names.split()}

_LATENT = {"num_key_value_heads": 4, "head_dim": 4}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
# what an architecture needs to be small beside that, or instead (None: its own default)
OWN = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "dots1": {"n_shared_experts": 1},
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 64},
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": _LATENT,
    "minicpm3": _LATENT,
    "qwen3_5_moe_text": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xlnet": {"max_position_embeddings": None},
    "youtu": _LATENT,
    "zaya": {"num_experts_per_tok": 1},
}
# pictures, sound or tables beside the text, of hundreds of megabytes, or sizes that the names above do not reach
LEFT_OUT = {
    "axk1",
    "bailing_hybrid",
    "blt",
    "cohere_compass_text",
    "dbrx",
    "dots3_note",
    "dots3_note_text",
    "emu3",
    "fuyu",
    "gemma3",
    "gemma3n",
    "gemma3n_text",
    "gemma4",
    "gemma4_assistant",
    "gemma4_text",
    "gemma4_unified",
    "gemma4_unified_assistant",
    "gemma4_unified_text",
    "git",
    "got_ocr2",
    "kimi_linear",
    "lfm3",
    "longcat_flash",
    "mamba2",
    "mllama",
    "moss_transcribe_diarize",
    "musicgen",
    "musicgen_melody",
    "nemotron_h",
    "phi4_multimodal",
    "prophetnet",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen4_exp",
    "qwen4_exp_text",
    # its reversible layers have no gradient where the embeddings are frozen
    "reformer",
    "roc_bert",
    "whisper",
    "xlstm",
    "xmod",
    "youtu",
    "zamba",
    "zamba2",
}
ARCHITECTURES = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in LEFT_OUT]


def build(kind: str):
    """The model of that type, the same each time, in eval mode; all matrices have a standard deviation of 0.25."""
    default = CONFIG_MAPPING[kind]()
    settings = {**_sizes_of(default), **OWN.get(kind, {})}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CONFIG_MAPPING[kind](**{name: size for name, size in settings.items() if size is not None})
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # transformers' own start is too small to show anything
                torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()


def _sizes_of(config) -> dict[str, object]:
    """The sizes that a configuration has; those of text in their place, where it is of more than text."""
    text = config.get_text_config()
    sizes = {name: size for name, size in SIZES.items() if hasattr(text, name)}
    place = [name for name, part in vars(config).items() if part is text]
    return {place[0]: sizes} if place else sizes
