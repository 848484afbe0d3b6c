"""The grammar: reviews of a sentiment, and the documents that the model is pre-trained on."""

import random
from collections.abc import Iterator

from demo.words import (
    ADJECTIVES,
    ASIDE_SUBJECTS,
    CONCESSIONS,
    CONTRASTS,
    DEGREES,
    DOMAINS,
    NEGATIONS,
    NEGATIVE,
    NEUTRAL_OPENINGS,
    NEUTRAL_TIMES,
    NEUTRAL_WORDS,
    POSITIVE,
    REACTIONS,
    TASK_QUESTION,
    VERDICT_FRAMES,
    VERDICT_PHRASES,
    VERDICT_WORDS,
    Domain,
)


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

    They keep the best possible accuracy below 100%, as unclear reviews do in real data.
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
    """A review whose overall sentiment is `label`."""
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

    The usual word of each subject makes the model tell the two words apart; were they interchangeable throughout, their
    embeddings would become almost equal and no change inside the model could make it prefer one.
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

    Words of praise and of blame are drawn equally often, but of the task's two words `great` more often, as it is the
    commoner one in English. The model therefore starts by preferring it after nearly every review, which is chance
    level. Were both equally likely, a slight accidental correlation with the sentiment would decide every answer the
    same way, and accuracy could start anywhere between 0% and 100%.
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


def take(documents: Iterator[str], count: int) -> list[str]:
    return [next(documents) for _ in range(count)]
