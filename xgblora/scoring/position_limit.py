"""How many positions a text may have, by all the names that configurations have for it."""

from torch import nn

# most of them, MPT, Whisper's decoder, code of one's own
_NAMES = ("max_position_embeddings", "max_seq_len", "max_target_positions", "n_positions")


def position_limit(model: nn.Module) -> int | None:
    """The most tokens of a text that the configuration of `model` allows; None if it says nothing."""
    config = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        return None
    # of a model for several kinds of input the part that writes text has the limit
    parts = (config, config.get_text_config(decoder=True))
    limits = [getattr(part, name, None) for part in parts for name in _NAMES]
    return min((limit for limit in limits if limit is not None), default=None)
