"""RTE: does a hypothesis follow from a premise? (Dagan et al., 2005, and later rounds; SuperGLUE: Wang et al., 2019.)

Local files are SuperGLUE's: `train.jsonl` and `val.jsonl`. The prompt is PromptSource's (Bach et al., 2022).
"""

from xgblora.tasks.task import Task
from xgblora.tasks.template import Template

TEMPLATE = Template(
    '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n',
    label="label",
    label_words={"entailment": "Yes", "not_entailment": "No", "0": "Yes", "1": "No"},
    sfc_prompt="",
)
TASK = Task("RTE", TEMPLATE.sample, hub=("aps/super_glue", "rte"))
