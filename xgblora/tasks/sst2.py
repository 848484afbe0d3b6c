"""SST-2: is a film review positive? (Socher et al., 2013; GLUE: Wang et al., 2018.)

Local files are GLUE's: `train.tsv` and `dev.tsv` with the columns `sentence` and `label`.
"""

from xgblora.tasks.task import Task
from xgblora.tasks.template import Template

TEMPLATE = Template(
    "{sentence} It was",
    label="label",
    label_words={"0": "terrible", "1": "great"},
    sfc_prompt=" It was",
    strips=True,
)
TASK = Task("SST2", TEMPLATE.sample, hub=("nyu-mll/glue", "sst2"))
