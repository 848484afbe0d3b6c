"""WiC: has a word the same meaning in two sentences? (Pilehvar and Camacho-Collados, 2019.)

Local files are SuperGLUE's (Wang et al., 2019): `train.jsonl` and `val.jsonl`. The prompt is PromptSource's
(Bach et al., 2022).
"""

from xgblora.tasks.task import Task
from xgblora.tasks.template import Template

TEMPLATE = Template(
    'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n',
    label="label",
    label_words={"false": "No", "true": "Yes", "0": "No", "1": "Yes"},
    sfc_prompt="",
)
TASK = Task("WIC", TEMPLATE.sample, hub=("aps/super_glue", "wic"))
