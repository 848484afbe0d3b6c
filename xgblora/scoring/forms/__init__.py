"""The kinds of models that a task can be put to, one file each: the one place that says how a base is loaded.

What trains, exports or replays asks here which kind a model is, by the name of its class, and which a folder was saved
as. A new kind is a new file and an entry in `FORMS`.
"""

from torch import nn
from transformers import AutoConfig

from xgblora.scoring.forms.causal import CAUSAL
from xgblora.scoring.forms.classifier import CLASSIFIER
from xgblora.scoring.forms.encoder_decoder import ENCODER_DECODER
from xgblora.scoring.forms.form import ModelForm
from xgblora.scoring.forms.masked import MASKED

__all__ = [
    "CAUSAL",
    "CLASSIFIER",
    "ENCODER_DECODER",
    "FORMS",
    "MASKED",
    "ModelForm",
    "form_named",
    "form_of",
    "saved_form",
]

# classes that none of them has are causal language models: those of one's own
FORMS = (MASKED, ENCODER_DECODER, CLASSIFIER, CAUSAL)


def form_named(architecture: str | None) -> ModelForm:
    """The kind of the class of this name."""
    return next((form for form in FORMS if architecture is not None and form.has(architecture)), CAUSAL)


def form_of(model: nn.Module) -> ModelForm:
    """The kind of a model, by its class."""
    return form_named(type(model).__name__)


def saved_form(name: str, *, head: bool = False, trust_remote_code: bool = False, revision: str | None = None):
    """The kind as which a model is loaded: what it was saved as, unless a head is asked for.

    Args:
        name: of the model, a folder or a hub name.
        head: whether a classification head is to be on it.
        trust_remote_code: whether code that comes with it may say what it is.
        revision: commit or branch of the hub.
    """
    if head:
        return CLASSIFIER
    configuration = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)
    form = form_named((getattr(configuration, "architectures", None) or [None])[0])
    # a classifier's body is asked for words unless somebody wants its head
    return CAUSAL if form is CLASSIFIER else form
