"""What is measured of the finished demonstration."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import OPTForCausalLM, PreTrainedTokenizerFast

from demo.pretraining import language_model_loss
from demo.reviews import Example, Task
from demo.tokenizer import word_ids
from demo.words import FAMILIAR_QUESTION, TASK_QUESTION, Question


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


@dataclass(frozen=True)
class Figures:
    """What was measured of the finished demo."""

    parameters: int
    vocabulary: int
    embedding_rows: int
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
    """`fresh` are batches of pre-training text that the model was not trained on."""
    examples = task.train + task.dev
    prompts = [TASK_QUESTION.prompt.format(sentence=example.sentence) for example in examples]
    return Figures(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=len(tokenizer),
        embedding_rows=len(model.get_input_embeddings().weight),
        train_examples=len(task.train),
        dev_examples=len(task.dev),
        words_per_review=sum(len(example.sentence.split()) for example in examples) / len(examples),
        tokens_per_prompt=sum(map(len, tokenizer(prompts)["input_ids"])) / len(prompts),
        language_model_loss=mean_loss(model, fresh),
        zero_shot_accuracy=accuracy(model, tokenizer, TASK_QUESTION, task.dev),
        familiar_accuracy=accuracy(model, tokenizer, FAMILIAR_QUESTION, task.dev),
    )
