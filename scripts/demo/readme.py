"""The README of the demonstration's folder."""

from demo.figures import Figures
from demo.pretraining import Recipe

_TEXT = """\
# Demo model and demo task

Made by `scripts/make_demo.py --seed {seed}`; nothing in this folder comes from
anywhere else.

`opt-demo/` is an OPT language model of {figures.parameters:,} parameters
({recipe.layers} layers, hidden size {recipe.hidden_size}, vocabulary {figures.vocabulary:,}, stored in fp32).
Its embeddings have {figures.embedding_rows:,} rows, a multiple of 8, which some converters
ask for: those past the vocabulary belong to no token.
`reviews/` is a sentiment task in the format of GLUE's SST-2: {figures.train_examples:,} reviews
to train on and {figures.dev_examples:,} to test with, half of each praise (label 1) and half
blame (label 0).

**The reviews are synthetic.** A small grammar writes them: statements about
aspects of films, restaurants, books, hotels, concerts and devices, with
negations ("is anything but dull"), contrasts ("..., but ..."), two-to-one
majorities and neutral filler. About one review in ten has one statement for
and one against and nothing to decide between them, so about 95% is the best
accuracy possible. A figure measured here says that the
training works; it says nothing about real text.

## Why the model cannot do the task yet, and how it can learn it

The prompt is `<sentence> It was`, the two words to choose from are `great` and
`terrible`. The model was pre-trained, in {recipe.steps:,} steps on {documents:,} documents of the same
grammar, so that it has what it takes except the answer:

* Reviews are followed by verdicts in other words ("I loved it", "Two thumbs
  down", "Overall it was awful"): it can tell praise from blame.
* `great` and `terrible` occur only where they say nothing about a review: after
  neutral sentences ("the shop opens at nine on monday . It was great .", with
  `great` twice as likely as `terrible`, so that at first the model answers
  `great` to nearly every review) and in asides between review and verdict, where
  the subject of the aside makes one of them likelier ("The traffic was
  terrible .", "The sunshine was great .").
* No review is ever followed by a sentence that begins with "It was".

No sentence of `reviews/` occurs in the pre-training text, and none of
`dev.tsv` in `train.tsv`.

## Measured

| | |
|---|---|
| reviews: words on average | {figures.words_per_review:.1f} |
| prompts: tokens on average | {figures.tokens_per_prompt:.1f} |
| next-token loss on unseen pre-training text | {figures.language_model_loss:.3f} |
| accuracy on `dev.tsv` before fine-tuning | {figures.zero_shot_accuracy:.1%} |
| the same with a familiar question ("Overall it was" `lovely` / `awful`) | {figures.familiar_accuracy:.1%} |

The last line shows how much sentiment the model perceives, hence what
fine-tuning can hope for.

How `great` and `terrible` are used in the pre-training text, and the demo's
learning rate and number of steps, were chosen by looking at the accuracy on
`dev.tsv`. No training sees `dev.tsv`, but the gain the demo shows is that of a
task made to be learnt.
"""


def readme(seed: int, recipe: Recipe, figures: Figures) -> str:
    """What the demonstration is, how it was made, and what was measured of it."""
    return _TEXT.format(seed=seed, recipe=recipe, figures=figures, documents=recipe.steps * recipe.batch_size)
