"""CommitmentBank: does its speaker hold a clause for true? (De Marneffe et al., 2019; SuperGLUE: Wang et al., 2019.)

Local files are SuperGLUE's: `train.jsonl` and `val.jsonl`. The prompt is PromptSource's (Bach et al., 2022).
"""

from xgblora.tasks.task import Task
from xgblora.tasks.template import Template

TEMPLATE = Template(
    'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
    label="label",
    label_words={
        "entailment": "Yes",
        "contradiction": "No",
        "neutral": "Maybe",
        "0": "Yes",
        "1": "No",
        "2": "Maybe",
    },
    sfc_prompt="",
)
TASK = Task("CB", TEMPLATE.sample, hub=("aps/super_glue", "cb"))
