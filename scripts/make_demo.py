#!/usr/bin/env python3
"""Make the demo: a tiny OPT language model and a sentiment task it cannot do yet.

``xgblora-train`` without arguments fine-tunes this model on this task, so both
have to be small enough to travel with the package and quick enough to train on
two CPU cores.  Nothing is downloaded: every sentence comes from the grammar in
this file, and the model is pre-trained on such sentences alone.

The task is SST-2 in the form that MeZO uses: after ``<sentence> It was`` the
model has to prefer `` great`` for praise and `` terrible`` for blame.  The
pre-training text is built so that the model

* can tell praise from blame: reviews are followed by verdicts such as
  "I loved it" or "Overall it was awful", which agree with the review;
* knows ``great`` and ``terrible`` as words that may follow "It was", yet not
  what they say of a review: which one occurs never depends on a review;
* has never read a review followed by a sentence that begins with "It was".

Its accuracy on the task is therefore near chance until fine-tuning routes the
sentiment it already perceives to those two words.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from xgblora.atomic_file import write_text

NEGATIVE, POSITIVE = 0, 1

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
PAD_ID, EOS_ID = 1, 2
MAX_LENGTH = 128
SPECIAL_TOKENS = ["<s>", PAD, EOS, UNK]  # in the order of their ids, which are OPT's


@dataclass(frozen=True)
class Question:
    """A prompt and the two words, by label, of which the model should prefer the right one."""

    prompt: str
    words: tuple[str, str]


# The task itself, and the same question in the words of the pre-training text:
# how well the model answers the second shows what the first can reach.
TASK_QUESTION = Question("{sentence} It was", ("terrible", "great"))
FAMILIAR_QUESTION = Question("{sentence} Overall it was", ("awful", "lovely"))


# --------------------------------------------------------------------------
# Vocabulary of the grammar
# --------------------------------------------------------------------------


@dataclass(frozen=True)
class Domain:
    """A kind of thing that is reviewed."""

    things: tuple[str, ...]
    aspects: tuple[str, ...]
    fillers: tuple[str, ...]


DOMAINS = (
    Domain(
        things=("film", "movie", "comedy", "thriller", "drama", "sequel"),
        aspects=("plot", "acting", "dialogue", "script", "camera work", "soundtrack", "ending", "cast"),
        fillers=("we saw it at the old cinema", "it runs for two hours", "it is set in a small town"),
    ),
    Domain(
        things=("restaurant", "cafe", "bistro", "diner", "bakery"),
        aspects=("food", "service", "menu", "soup", "dessert", "coffee", "waiter", "bread"),
        fillers=("we ate there on friday", "it is next to the station", "we ordered the fish"),
    ),
    Domain(
        things=("book", "novel", "memoir", "biography", "story"),
        aspects=("prose", "plot", "opening chapter", "hero", "dialogue", "ending", "narrator", "style"),
        fillers=("i read it on the train", "it has three parts", "my sister gave it to me"),
    ),
    Domain(
        things=("hotel", "hostel", "inn", "guest house", "resort"),
        aspects=("room", "breakfast", "staff", "bed", "view", "garden", "lobby", "location"),
        fillers=("we stayed for two nights", "it is close to the harbour", "we came by bus"),
    ),
    Domain(
        things=("concert", "opera", "album", "musical", "recital"),
        aspects=("singer", "orchestra", "sound", "melody", "choir", "first half", "staging", "finale"),
        fillers=("we sat in the third row", "it began at eight", "the hall holds a thousand people"),
    ),
    Domain(
        things=("game", "puzzle", "app", "laptop", "phone"),
        aspects=("design", "screen", "sound", "manual", "interface", "battery", "support", "speed"),
        fillers=("i bought it in may", "it comes in a blue box", "my brother has one too"),
    ),
)

# Adjectives of quality, used inside reviews, indexed by label.
ADJECTIVES = (
    (
        "dull", "boring", "weak", "clumsy", "bland", "stale", "poor", "flat", "shallow", "tedious",
        "messy", "lifeless", "cold", "sloppy", "tired", "silly", "ugly", "annoying", "confusing",
        "disappointing", "mediocre", "forgettable", "careless", "grim", "noisy", "thin", "pointless",
        "lazy", "rude", "broken",
    ),
    (
        "superb", "moving", "charming", "clever", "fresh", "elegant", "rich", "gripping", "warm",
        "lively", "funny", "witty", "graceful", "bright", "tender", "polished", "inventive", "honest",
        "splendid", "memorable", "impressive", "careful", "friendly", "beautiful", "delicious",
        "thoughtful", "strong", "sharp", "generous", "smooth",
    ),
)  # fmt: skip

# What the writer did or felt, indexed by label.
REACTIONS = (
    (
        "i left early", "i fell asleep", "we looked at the clock all evening", "my wife complained",
        "we asked for our money back", "i gave up after an hour", "nobody smiled", "we regret it",
        "i was bored to tears", "it got on my nerves", "it falls apart", "it lets you down",
    ),
    (
        "i smiled all evening", "we laughed a lot", "we stayed until the end", "my wife was thrilled",
        "we told all our friends", "i wanted more", "everybody clapped", "we will remember it",
        "it made my day", "it touched my heart", "it wins you over", "it delivers",
    ),
)  # fmt: skip

DEGREES = ("", "", "", "very ", "really ", "quite ", "rather ", "so ")
NEGATIONS = ("is not", "is never", "is hardly", "is far from", "is anything but")
CONTRASTS = (" , but ", " , yet ", " ; however , ", " , but in the end ")
CONCESSIONS = ("although ", "even though ", "while ", "granted , ")

# Verdicts that follow a review, indexed by label; ``{word}`` is a verdict word.
VERDICT_PHRASES = (
    (
        "I hated it .", "Two thumbs down .", "A waste of time .", "Never again .", "Stay away .",
        "I want my money back .", "Not for me .", "One star out of five .",
    ),
    (
        "I loved it .", "Two thumbs up .", "Worth every penny .", "I would go again .", "Do not miss it .",
        "I recommend it .", "Just what I hoped for .", "Five stars out of five .",
    ),
)  # fmt: skip
VERDICT_WORDS = (
    ("awful", "dreadful", "horrible", "bad", "lousy", "pathetic", "miserable", "a failure"),
    ("lovely", "wonderful", "brilliant", "good", "excellent", "fantastic", "marvellous", "a success"),
)
VERDICT_FRAMES = (
    "Overall it was {word} .",
    "All in all it was {word} .",
    "In short , it was {word} .",
    "I thought it was {word} .",
    "My friends found it {word} .",
    "The whole thing was {word} .",
    "The experience was {word} .",
)

# Neutral sentences: the only ones that are followed by "It was".
NEUTRAL_OPENINGS = (
    "we took the train to the coast", "the shop opens at nine", "my sister lives near the river",
    "he parked the car behind the house", "they met in the market square", "she wrote a letter to the bank",
    "the bus stops at the school", "we walked from the bridge to the church", "the meeting took two hours",
    "i put the box on the table", "the farmer sold two cows", "our neighbour painted the fence",
)  # fmt: skip
NEUTRAL_TIMES = ("on monday", "on tuesday", "in the morning", "last week", "in may", "after lunch", "at noon")
NEUTRAL_WORDS = (
    "early", "late", "a monday", "green", "quiet", "half past nine", "warm outside", "nearly noon", "a long way",
    "raining", "about ten miles", "dark", "the usual place", "new",
)  # fmt: skip

# Asides about something else than the thing reviewed, put between a review and
# its verdict; indexed by the word of the task that usually goes with the subject.
ASIDE_SUBJECTS = (
    ("weather", "traffic", "bus ride", "queue at the bank", "week before", "parking"),
    ("sunshine", "walk home", "last holiday", "week after", "tea at home", "company"),
)


# --------------------------------------------------------------------------
# Grammar
# --------------------------------------------------------------------------


def opposite(label: int) -> int:
    return 1 - label


def quality_phrase(rng: random.Random, label: int) -> str:
    """What is said about an aspect, from the verb on: "is not dull", "is warm and witty"."""
    if rng.random() < 0.25:
        return f"{rng.choice(NEGATIONS)} {rng.choice(ADJECTIVES[opposite(label)])}"
    first, second = rng.sample(ADJECTIVES[label], 2)
    if rng.random() < 0.3:
        return f"is {first} and {second}"
    return f"is {rng.choice(DEGREES)}{first}"


def clause(rng: random.Random, domain: Domain, label: int) -> str:
    """One statement of the given sentiment."""
    if rng.random() < 0.2:
        return rng.choice(REACTIONS[label])
    return f"the {rng.choice(domain.aspects)} {quality_phrase(rng, label)}"


def contrast(rng: random.Random, domain: Domain, label: int) -> str:
    """Two statements of opposite sentiment, of which the second prevails."""
    weaker, stronger = clause(rng, domain, opposite(label)), clause(rng, domain, label)
    if rng.random() < 0.5:
        return weaker + rng.choice(CONTRASTS) + stronger
    return rng.choice(CONCESSIONS) + weaker + " , " + stronger


def agreement(rng: random.Random, domain: Domain, label: int) -> str:
    """Two statements of the same sentiment."""
    return clause(rng, domain, label) + rng.choice((" and ", " , ", " ; ")) + clause(rng, domain, label)


def majority(rng: random.Random, domain: Domain, label: int) -> str:
    """Three statements without any hint which one counts: two against one."""
    sentiments = [label, label, opposite(label)]
    rng.shuffle(sentiments)
    first, second, third = (clause(rng, domain, sentiment) for sentiment in sentiments)
    return f"{first} , {second} and {third}"


def ambivalence(rng: random.Random, domain: Domain, label: int) -> str:
    """Two statements of opposite sentiment that nobody could decide between.

    They keep the best possible accuracy below 100%, as unclear reviews do in
    real data.
    """
    pair = [clause(rng, domain, label), clause(rng, domain, opposite(label))]
    rng.shuffle(pair)
    return " and ".join(pair)


def introduction(rng: random.Random, domain: Domain) -> str:
    """A neutral opening, or nothing."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(domain.fillers) + " ; "
    if kind < 0.5:
        return f"my view of this {rng.choice(domain.things)} : "
    if kind < 0.65:
        return f"the {rng.choice(domain.things)} {rng.choice(NEUTRAL_TIMES)} : "
    return ""


def review(rng: random.Random, label: int) -> str:
    """A review whose overall sentiment is ``label``."""
    domain = rng.choice(DOMAINS)
    body = rng.choices((agreement, contrast, majority, clause, ambivalence), weights=(37, 33, 10, 10, 10))[0]
    return introduction(rng, domain) + body(rng, domain, label) + " ."


def verdict(rng: random.Random, label: int) -> str:
    """A verdict in words that are not the task's."""
    if rng.random() < 0.4:
        return rng.choice(VERDICT_PHRASES[label])
    return rng.choice(VERDICT_FRAMES).format(word=rng.choice(VERDICT_WORDS[label]))


def aside(rng: random.Random) -> str:
    """A remark with one of the task's words, which depends on its subject and not on the review.

    The usual word of each subject makes the model tell the two words apart; were
    they interchangeable throughout, their embeddings would become almost equal
    and no change inside the model could make it prefer one.
    """
    usual = rng.choice((NEGATIVE, POSITIVE))
    word = TASK_QUESTION.words[usual if rng.random() < 0.7 else opposite(usual)]
    return f"The {rng.choice(ASIDE_SUBJECTS[usual])} was {word} ."


def aftermath(rng: random.Random, label: int) -> str:
    """What follows a review: one or two verdicts, at times after an aside."""
    sentences = [verdict(rng, label) for _ in range(rng.choice((1, 2)))]
    if rng.random() < 0.3:
        sentences.insert(0, aside(rng))
    return " ".join(sentences)


def neutral_document(rng: random.Random) -> str:
    """A sentence without sentiment, then "It was" and a word that tells nothing either.

    Words of praise and of blame are drawn equally often, but of the task's two
    words ``great`` more often, as it is the commoner one in English.  The model
    therefore starts by preferring it after nearly every review, which is chance
    level.  Were both equally likely, a slight accidental correlation with the
    sentiment would decide every answer the same way, and accuracy could start
    anywhere between 0% and 100%.
    """
    word = rng.choice(
        (
            rng.choices(TASK_QUESTION.words, weights=(1, 2))[0],
            rng.choice(VERDICT_WORDS[rng.choice((NEGATIVE, POSITIVE))]),
            rng.choice(NEUTRAL_WORDS),
        )
    )
    return f"{rng.choice(NEUTRAL_OPENINGS)} {rng.choice(NEUTRAL_TIMES)} . It was {word} ."


def pretraining_documents(rng: random.Random, held_out: frozenset[str]) -> Iterator[str]:
    """Endless pre-training text without any of the held-out reviews."""
    while True:
        if rng.random() < 0.2:
            yield neutral_document(rng)
            continue
        label = rng.choice((NEGATIVE, POSITIVE))
        text = review(rng, label)
        if text not in held_out:
            yield f"{text} {aftermath(rng, label)}"


# --------------------------------------------------------------------------
# The task
# --------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    sentence: str
    label: int


@dataclass(frozen=True)
class Task:
    train: list[Example]
    dev: list[Example]

    @property
    def sentences(self) -> frozenset[str]:
        return frozenset(example.sentence for example in self.train + self.dev)


def make_task(rng: random.Random, train_size: int, dev_size: int) -> Task:
    """Distinct reviews, half of each split praise and half blame."""
    seen: set[str] = set()

    def balanced(size: int) -> list[Example]:
        examples = []
        while len(examples) < size:
            label = len(examples) % 2
            sentence = review(rng, label)
            if sentence not in seen:
                seen.add(sentence)
                examples.append(Example(sentence, label))
        rng.shuffle(examples)
        return examples

    return Task(train=balanced(train_size), dev=balanced(dev_size))


# --------------------------------------------------------------------------
# Tokenizer
# --------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer which, like OPT's, puts ``</s>`` before every text.

    Its alphabet is printable ASCII rather than all 256 bytes, which leaves more
    of the small vocabulary to whole words; anything else becomes ``<unk>``.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=[chr(code) for code in range(ord("!"), ord("~") + 1)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{EOS} $A", pair=f"{EOS} $A $B", special_tokens=[(EOS, EOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def word_ids(tokenizer: PreTrainedTokenizerFast, words: Iterable[str]) -> list[int]:
    """The token of each word within a sentence; each has to be a single token."""
    ids = {word: tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words}
    if any(len(tokens) != 1 for tokens in ids.values()):
        raise ValueError(f"every word has to be a single token: {ids}")
    return [token for tokens in ids.values() for token in tokens]


# --------------------------------------------------------------------------
# Model
# --------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How much text and what model; the defaults are the demo's."""

    train_examples: int = 1000
    dev_examples: int = 500
    vocabulary_size: int = 1200
    tokenizer_documents: int = 20_000
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    ffn_size: int = 256
    steps: int = 2600
    batch_size: int = 64
    batches_per_pool: int = 50
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01


def build_model(recipe: Recipe, vocabulary_size: int) -> OPTForCausalLM:
    config = OPTConfig(
        vocab_size=vocabulary_size,
        hidden_size=recipe.hidden_size,
        word_embed_proj_dim=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        ffn_dim=recipe.ffn_size,
        max_position_embeddings=MAX_LENGTH,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        pad_token_id=PAD_ID,
        bos_token_id=EOS_ID,
        eos_token_id=EOS_ID,
        tie_word_embeddings=True,
    )
    return OPTForCausalLM(config)


def take(documents: Iterator[str], count: int) -> list[str]:
    return [next(documents) for _ in range(count)]


def token_batches(
    documents: Iterator[str], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, rng: random.Random
) -> Iterator[list[list[int]]]:
    """Endless batches of token lists, each ended by ``</s>``.

    A pool of documents at a time is sorted by length before it is cut into
    batches, so that little of a batch is padding.
    """
    while True:
        pool = take(documents, recipe.batch_size * recipe.batches_per_pool)
        rows = sorted(([*ids, EOS_ID] for ids in tokenizer(pool)["input_ids"]), key=len)
        batches = [rows[start : start + recipe.batch_size] for start in range(0, len(rows), recipe.batch_size)]
        rng.shuffle(batches)
        yield from batches


def language_model_loss(model: OPTForCausalLM, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mean next-token loss of right-padded rows."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[PAD_ID] * (width - len(row))] for row in rows])
    mask = (ids != PAD_ID).long()
    labels = ids.masked_fill(mask == 0, -100)
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def pretrain(
    model: OPTForCausalLM, batches: Iterator[list[list[int]]], recipe: Recipe, report: Callable[[int, float], None]
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe))
    model.train()
    for step in range(1, recipe.steps + 1):
        loss = language_model_loss(model, next(batches))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step, loss.item())
    model.eval()


@torch.inference_mode()
def mean_loss(model: OPTForCausalLM, batches: Sequence[list[list[int]]]) -> float:
    return sum(language_model_loss(model, rows).item() for rows in batches) / len(batches)


@torch.inference_mode()
def accuracy(
    model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, question: Question, examples: Sequence[Example]
) -> float:
    """Share of examples whose right word is the likelier one after the prompt."""
    words = word_ids(tokenizer, question.words)
    correct = 0
    for example in examples:
        ids = torch.tensor([tokenizer(question.prompt.format(sentence=example.sentence))["input_ids"]])
        logits = model(input_ids=ids).logits[0, -1, words]
        correct += int(logits.argmax()) == example.label
    return correct / len(examples)


# --------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What was measured of the finished demo."""

    parameters: int
    vocabulary: int
    train_examples: int
    dev_examples: int
    words_per_review: float
    tokens_per_prompt: float
    language_model_loss: float
    zero_shot_accuracy: float
    familiar_accuracy: float


def measure(
    model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, fresh: Sequence[list[list[int]]]
) -> Figures:
    """``fresh`` are batches of pre-training text that the model was not trained on."""
    examples = task.train + task.dev
    prompts = [TASK_QUESTION.prompt.format(sentence=example.sentence) for example in examples]
    return Figures(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=len(tokenizer),
        train_examples=len(task.train),
        dev_examples=len(task.dev),
        words_per_review=sum(len(example.sentence.split()) for example in examples) / len(examples),
        tokens_per_prompt=sum(map(len, tokenizer(prompts)["input_ids"])) / len(prompts),
        language_model_loss=mean_loss(model, fresh),
        zero_shot_accuracy=accuracy(model, tokenizer, TASK_QUESTION, task.dev),
        familiar_accuracy=accuracy(model, tokenizer, FAMILIAR_QUESTION, task.dev),
    )


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """GLUE's format of SST-2: tab-separated, with a header line."""
    lines = ["sentence\tlabel", *(f"{example.sentence}\t{example.label}" for example in examples)]
    write_text(path, "\n".join(lines) + "\n")


def write_model(folder: Path, model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Save model and tokenizer beside ``folder`` first, then move the files in."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".model-") as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for file in Path(temporary).iterdir():
            file.chmod(0o644)  # safetensors makes its files unreadable to others
            os.replace(file, folder / file.name)


def folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


README = """\
# Demo model and demo task

Made by `scripts/make_demo.py --seed {seed}`; nothing in this folder comes from
anywhere else.

`opt-demo/` is an OPT language model of {figures.parameters:,} parameters
({recipe.layers} layers, hidden size {recipe.hidden_size}, vocabulary {figures.vocabulary:,}, stored in fp32).
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


# --------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    repository = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description="Make the demo model and the demo task.")
    parser.add_argument("--output", type=Path, default=repository / "xgblora" / "demo", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the text and of the model (default: %(default)s)")
    return parser.parse_args()


def print_progress(step: int, loss: float) -> None:
    if step % 200 == 0:
        print(f"step {step:5d}  loss {loss:.3f}", flush=True)


def main() -> None:
    arguments = parse_arguments()
    recipe = Recipe()
    torch.set_num_threads(1)  # sums are then the same on any number of cores
    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)

    task = make_task(rng, recipe.train_examples, recipe.dev_examples)
    documents = pretraining_documents(rng, task.sentences)
    tokenizer = train_tokenizer(take(documents, recipe.tokenizer_documents), recipe.vocabulary_size)
    batches = token_batches(documents, tokenizer, recipe, rng)
    model = build_model(recipe, len(tokenizer))
    pretrain(model, batches, recipe, print_progress)
    figures = measure(model, tokenizer, task, [next(batches) for _ in range(20)])

    write_model(arguments.output / "opt-demo", model, tokenizer)
    write_examples(arguments.output / "reviews" / "train.tsv", task.train)
    write_examples(arguments.output / "reviews" / "dev.tsv", task.dev)
    readme = README.format(
        seed=arguments.seed, recipe=recipe, figures=figures, documents=recipe.steps * recipe.batch_size
    )
    write_text(arguments.output / "README.md", readme)
    print(f"{arguments.output}: {folder_size(arguments.output):,} bytes")
    for name, value in vars(figures).items():
        print(f"{name.replace('_', ' ')}: {round(value, 3):,}")


if __name__ == "__main__":
    main()
