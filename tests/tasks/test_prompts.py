"""Prompts, candidates and calibration texts are MeZO's, character by character.

The expected strings are written out from MeZO's `large_models/templates.py` and `tasks.py` as `encode_prompt` in its
`utils.py` passes them on, without spaces at their ends. The rows have the columns of the hub.
"""

from typing import NamedTuple

import pytest

from xgblora.errors import InputError
from xgblora.tasks import TASKS, Sample


class Expected(NamedTuple):
    """The texts of one row; `right` are the candidates that count, the first is trained."""

    prompt: str
    candidates: list[str]
    right: tuple[int, ...]
    sfc_prompt: str
    sfc_candidates: list[str]


def names_only(value: object) -> str:
    """Tests are called by their task."""
    return value if isinstance(value, str) and value in TASKS else ""


CHOICES = [
    (
        "SST2",
        {"idx": 0, "sentence": "hide new secretions from the parental units ", "label": 0},
        Expected(
            "hide new secretions from the parental units It was",
            [
                "hide new secretions from the parental units It was terrible",
                "hide new secretions from the parental units It was great",
            ],
            (0,),
            "It was",
            ["It was terrible", "It was great"],
        ),
    ),
    (
        "SST2",
        {"sentence": "that loves its characters and communicates something rather beautiful", "label": 1},
        Expected(
            "that loves its characters and communicates something rather beautiful It was",
            [
                "that loves its characters and communicates something rather beautiful It was terrible",
                "that loves its characters and communicates something rather beautiful It was great",
            ],
            (1,),
            "It was",
            ["It was terrible", "It was great"],
        ),
    ),
    (
        "SST2",
        {"sentence": " it 's a `` so-so '' film . ", "label": 0},
        Expected(
            "it 's a `` so-so '' film . It was",
            ["it 's a `` so-so '' film . It was terrible", "it 's a `` so-so '' film . It was great"],
            (0,),
            "It was",
            ["It was terrible", "It was great"],
        ),
    ),
    (
        "RTE",
        {"premise": "No weapons were found.", "hypothesis": "Weapons were found.", "label": 1},
        Expected(
            'No weapons were found.\nDoes this mean that "Weapons were found." is true? Yes or No?\n',
            [
                'No weapons were found.\nDoes this mean that "Weapons were found." is true? Yes or No?\nYes',
                'No weapons were found.\nDoes this mean that "Weapons were found." is true? Yes or No?\nNo',
            ],
            (1,),
            "",
            ["Yes", "No"],
        ),
    ),
    (
        "RTE",
        {"premise": "Rain fell in Rome.", "hypothesis": "It rained.", "label": "entailment"},
        Expected(
            'Rain fell in Rome.\nDoes this mean that "It rained." is true? Yes or No?\n',
            [
                'Rain fell in Rome.\nDoes this mean that "It rained." is true? Yes or No?\nYes',
                'Rain fell in Rome.\nDoes this mean that "It rained." is true? Yes or No?\nNo',
            ],
            (0,),
            "",
            ["Yes", "No"],
        ),
    ),
    (
        "RTE",
        {"premise": 'He said "no".', "hypothesis": "He agreed.", "label": "not_entailment"},
        Expected(
            'He said "no".\nDoes this mean that "He agreed." is true? Yes or No?\n',
            [
                'He said "no".\nDoes this mean that "He agreed." is true? Yes or No?\nYes',
                'He said "no".\nDoes this mean that "He agreed." is true? Yes or No?\nNo',
            ],
            (1,),
            "",
            ["Yes", "No"],
        ),
    ),
    (
        "CB",
        {"premise": "It was a complex language.", "hypothesis": "the language was complex", "label": 0},
        Expected(
            'Suppose It was a complex language. Can we infer that "the language was complex"? Yes, No, or Maybe?\n',
            [
                "Suppose It was a complex language. "
                'Can we infer that "the language was complex"? Yes, No, or Maybe?\nYes',
                "Suppose It was a complex language. "
                'Can we infer that "the language was complex"? Yes, No, or Maybe?\nNo',
                "Suppose It was a complex language. "
                'Can we infer that "the language was complex"? Yes, No, or Maybe?\nMaybe',
            ],
            (0,),
            "",
            ["Yes", "No", "Maybe"],
        ),
    ),
    (
        "CB",
        {"premise": "Did he help?", "hypothesis": "he helped", "label": "contradiction"},
        Expected(
            'Suppose Did he help? Can we infer that "he helped"? Yes, No, or Maybe?\n',
            [
                'Suppose Did he help? Can we infer that "he helped"? Yes, No, or Maybe?\nYes',
                'Suppose Did he help? Can we infer that "he helped"? Yes, No, or Maybe?\nNo',
                'Suppose Did he help? Can we infer that "he helped"? Yes, No, or Maybe?\nMaybe',
            ],
            (1,),
            "",
            ["Yes", "No", "Maybe"],
        ),
    ),
    (
        "CB",
        {"premise": "Who knows?", "hypothesis": "there is a shipment", "label": "neutral"},
        Expected(
            'Suppose Who knows? Can we infer that "there is a shipment"? Yes, No, or Maybe?\n',
            [
                'Suppose Who knows? Can we infer that "there is a shipment"? Yes, No, or Maybe?\nYes',
                'Suppose Who knows? Can we infer that "there is a shipment"? Yes, No, or Maybe?\nNo',
                'Suppose Who knows? Can we infer that "there is a shipment"? Yes, No, or Maybe?\nMaybe',
            ],
            (2,),
            "",
            ["Yes", "No", "Maybe"],
        ),
    ),
    (
        "BoolQ",
        {"passage": "Ice floats.", "question": "does ice float on water", "answer": True},
        Expected(
            "Ice floats. Does ice float on water?\n",
            ["Ice floats. Does ice float on water?\nYes", "Ice floats. Does ice float on water?\nNo"],
            (0,),
            "",
            ["Yes", "No"],
        ),
    ),
    (
        "BoolQ",
        {"passage": "Iron sinks.", "question": "does iron float?", "answer": False},
        Expected(
            "Iron sinks. Does iron float?\n",
            ["Iron sinks. Does iron float?\nYes", "Iron sinks. Does iron float?\nNo"],
            (1,),
            "",
            ["Yes", "No"],
        ),
    ),
    (
        "BoolQ",
        {"passage": "(CNN) A page.", "question": "'tis so", "answer": True},
        Expected(
            "(CNN) A page. 'tis so?\n",
            ["(CNN) A page. 'tis so?\nYes", "(CNN) A page. 'tis so?\nNo"],
            (0,),
            "",
            ["Yes", "No"],
        ),
    ),
    (
        "WSC",
        {"text": "Mark told Pete lies. He lied.", "span1_text": "Mark", "span2_text": "He", "label": 1},
        Expected(
            "Mark told Pete lies. He lied.\n"
            'In the previous sentence, does the pronoun "he" refer to Mark? Yes or No?\n',
            [
                "Mark told Pete lies. He lied.\n"
                'In the previous sentence, does the pronoun "he" refer to Mark? Yes or No?\nNo',
                "Mark told Pete lies. He lied.\n"
                'In the previous sentence, does the pronoun "he" refer to Mark? Yes or No?\nYes',
            ],
            (1,),
            "",
            ["No", "Yes"],
        ),
    ),
    (
        "WSC",
        {"text": "The ball hit it.", "span1_text": "The ball", "span2_text": "it", "label": 0},
        Expected(
            'The ball hit it.\nIn the previous sentence, does the pronoun "it" refer to The ball? Yes or No?\n',
            [
                'The ball hit it.\nIn the previous sentence, does the pronoun "it" refer to The ball? Yes or No?\nNo',
                'The ball hit it.\nIn the previous sentence, does the pronoun "it" refer to The ball? Yes or No?\nYes',
            ],
            (0,),
            "",
            ["No", "Yes"],
        ),
    ),
    (
        "WSC",
        {"text": "Sue ran. SHE left .", "span1_text": "Sue", "span2_text": "SHE", "label": False},
        Expected(
            'Sue ran. SHE left .\nIn the previous sentence, does the pronoun "she" refer to Sue? Yes or No?\n',
            [
                'Sue ran. SHE left .\nIn the previous sentence, does the pronoun "she" refer to Sue? Yes or No?\nNo',
                'Sue ran. SHE left .\nIn the previous sentence, does the pronoun "she" refer to Sue? Yes or No?\nYes',
            ],
            (0,),
            "",
            ["No", "Yes"],
        ),
    ),
    (
        "WIC",
        {"word": "place", "sentence1": "Come to my place.", "sentence2": "No place for them.", "label": 0},
        Expected(
            'Does the word "place" have the same meaning in these two sentences? Yes, No?\n'
            "Come to my place.\nNo place for them.\n",
            [
                'Does the word "place" have the same meaning in these two sentences? Yes, No?\n'
                "Come to my place.\nNo place for them.\nNo",
                'Does the word "place" have the same meaning in these two sentences? Yes, No?\n'
                "Come to my place.\nNo place for them.\nYes",
            ],
            (0,),
            "",
            ["No", "Yes"],
        ),
    ),
    (
        "WIC",
        {"word": "run", "sentence1": "Run rogue.", "sentence2": "She ran home.", "label": False},
        Expected(
            'Does the word "run" have the same meaning in these two sentences? Yes, No?\nRun rogue.\nShe ran home.\n',
            [
                'Does the word "run" have the same meaning in these two sentences? Yes, No?\n'
                "Run rogue.\nShe ran home.\nNo",
                'Does the word "run" have the same meaning in these two sentences? Yes, No?\n'
                "Run rogue.\nShe ran home.\nYes",
            ],
            (0,),
            "",
            ["No", "Yes"],
        ),
    ),
    (
        "WIC",
        {"word": "cup", "sentence1": "A cup", "sentence2": "Two cups", "label": True},
        Expected(
            'Does the word "cup" have the same meaning in these two sentences? Yes, No?\nA cup\nTwo cups\n',
            [
                'Does the word "cup" have the same meaning in these two sentences? Yes, No?\nA cup\nTwo cups\nNo',
                'Does the word "cup" have the same meaning in these two sentences? Yes, No?\nA cup\nTwo cups\nYes',
            ],
            (1,),
            "",
            ["No", "Yes"],
        ),
    ),
    (
        "MultiRC",
        {"paragraph": "A force moves things.", "question": "What moves things?", "answer": "A force", "label": 1},
        Expected(
            "A force moves things.\nQuestion: What moves things?\n"
            'I found this answer "A force". Is that correct? Yes or No?\n',
            [
                "A force moves things.\nQuestion: What moves things?\n"
                'I found this answer "A force". Is that correct? Yes or No?\nNo',
                "A force moves things.\nQuestion: What moves things?\n"
                'I found this answer "A force". Is that correct? Yes or No?\nYes',
            ],
            (1,),
            "",
            ["No", "Yes"],
        ),
    ),
    (
        "MultiRC",
        {"paragraph": "Pip ate.\nHe sat.", "question": "Who sat?", "answer": "Joe", "label": 0},
        Expected(
            'Pip ate.\nHe sat.\nQuestion: Who sat?\nI found this answer "Joe". Is that correct? Yes or No?\n',
            [
                'Pip ate.\nHe sat.\nQuestion: Who sat?\nI found this answer "Joe". Is that correct? Yes or No?\nNo',
                'Pip ate.\nHe sat.\nQuestion: Who sat?\nI found this answer "Joe". Is that correct? Yes or No?\nYes',
            ],
            (0,),
            "",
            ["No", "Yes"],
        ),
    ),
    (
        "MultiRC",
        {"paragraph": "One.", "question": "How many?", "answer": "", "label": 0},
        Expected(
            'One.\nQuestion: How many?\nI found this answer "". Is that correct? Yes or No?\n',
            [
                'One.\nQuestion: How many?\nI found this answer "". Is that correct? Yes or No?\nNo',
                'One.\nQuestion: How many?\nI found this answer "". Is that correct? Yes or No?\nYes',
            ],
            (0,),
            "",
            ["No", "Yes"],
        ),
    ),
    (
        "Copa",
        {
            "premise": "My body cast a shadow over the grass.",
            "choice1": "The sun was rising.",
            "choice2": "The grass was cut.",
            "question": "cause",
            "label": 0,
        },
        Expected(
            "My body cast a shadow over the grass because",
            [
                "My body cast a shadow over the grass because the sun was rising.",
                "My body cast a shadow over the grass because the grass was cut.",
            ],
            (0,),
            "because",
            ["because the sun was rising.", "because the grass was cut."],
        ),
    ),
    (
        "Copa",
        {
            "premise": "I hit the ball. ",
            "choice1": "I ran to John's.",
            "choice2": "I'm happy.",
            "question": "effect",
            "label": 1,
        },
        Expected(
            "I hit the ball so",
            ["I hit the ball so I ran to John's.", "I hit the ball so i'm happy."],
            (1,),
            "so",
            ["so I ran to John's.", "so i'm happy."],
        ),
    ),
    (
        "Copa",
        {
            "premise": "Was it late?",
            "choice1": " The driver talked.",
            "choice2": "NASA called",
            "question": "effect",
            "label": 0,
        },
        Expected(
            "Was it late? so",
            ["Was it late? so  The driver talked.", "Was it late? so nasa called"],
            (0,),
            "so",
            ["so  The driver talked.", "so nasa called"],
        ),
    ),
    (
        "ReCoRD",
        {
            "passage": "Ann met Bob.\n@highlight\nThey talked\n@highlight\nBob left",
            "query": "Then @placeholder was alone.",
            "entities": ["Ann", "Bob"],
            "answers": ["Ann"],
        },
        Expected(
            "Ann met Bob.\n- They talked\n- Bob left\n-",
            [
                "Ann met Bob.\n- They talked\n- Bob left\n- Then Ann was alone.",
                "Ann met Bob.\n- They talked\n- Bob left\n- Then Bob was alone.",
            ],
            (0,),
            "-",
            ["- Then Ann was alone.", "- Then Bob was alone."],
        ),
    ),
    (
        "ReCoRD",
        {
            "passage": "(CNN) Mr. Lee is ill.",
            "query": "@placeholder, said @placeholder's son",
            "entities": ["CNN", "Lee", "Mr. Lee"],
            "answers": ["Mr. Lee", "Lee"],
        },
        Expected(
            "(CNN) Mr. Lee is ill.\n-",
            [
                "(CNN) Mr. Lee is ill.\n- CNN, said CNN's son",
                "(CNN) Mr. Lee is ill.\n- Lee, said Lee's son",
                "(CNN) Mr. Lee is ill.\n- Mr. Lee, said Mr. Lee's son",
            ],
            (2, 1),
            "-",
            ["- CNN, said CNN's son", "- Lee, said Lee's son", "- Mr. Lee, said Mr. Lee's son"],
        ),
    ),
    (
        "ReCoRD",
        {
            "passage": "Rome won.\n@highlight\nGoal by Totti",
            "query": "It was for @placeholder ",
            "entities": ["Rome", "Totti"],
            "answers": ["Totti"],
        },
        Expected(
            "Rome won.\n- Goal by Totti\n-",
            ["Rome won.\n- Goal by Totti\n- It was for Rome", "Rome won.\n- Goal by Totti\n- It was for Totti"],
            (1,),
            "-",
            ["- It was for Rome", "- It was for Totti"],
        ),
    ),
]

GENERATIONS = [
    (
        "SQuAD",
        {
            "title": "Notre_Dame",
            "context": "The Basilica is near.",
            "question": "What is near?",
            "answers": {"text": ["The Basilica"], "answer_start": [0]},
        },
        "Title: Notre_Dame\nContext: The Basilica is near.\nQuestion: What is near?\nAnswer:",
        "Title: Notre_Dame\nContext: The Basilica is near.\nQuestion: What is near?\nAnswer: The Basilica\n",
        ("The Basilica",),
    ),
    (
        "SQuAD",
        {
            "title": "Super_Bowl_50",
            "context": "Denver won 24 to 10.",
            "question": " Who won? ",
            "answers": {"text": ["Denver", "Denver", "the Denver Broncos"]},
        },
        "Title: Super_Bowl_50\nContext: Denver won 24 to 10.\nQuestion: Who won?\nAnswer:",
        "Title: Super_Bowl_50\nContext: Denver won 24 to 10.\nQuestion: Who won?\nAnswer: Denver\n",
        ("Denver", "Denver", "the Denver Broncos"),
    ),
    (
        "SQuAD",
        {"title": "A_B", "context": "One.\nTwo.", "question": "Which?", "answers": {"text": ["Two."]}},
        "Title: A_B\nContext: One.\nTwo.\nQuestion: Which?\nAnswer:",
        "Title: A_B\nContext: One.\nTwo.\nQuestion: Which?\nAnswer: Two.\n",
        ("Two.",),
    ),
    (
        "DROP",
        {
            "passage": "Rivers threw a 38-yard pass.",
            "question": "Who threw? ",
            "answers_spans": {"spans": ["Rivers"], "types": ["span"]},
        },
        "Passage: Rivers threw a 38-yard pass.\nQuestion: Who threw?\nAnswer:",
        "Passage: Rivers threw a 38-yard pass.\nQuestion: Who threw?\nAnswer: Rivers\n",
        ("Rivers",),
    ),
    (
        "DROP",
        {
            "passage": "They scored 3 and 4.",
            "question": "How many points in all?",
            "answers_spans": {"spans": ["7", "seven"], "types": ["number", "span"]},
        },
        "Passage: They scored 3 and 4.\nQuestion: How many points in all?\nAnswer:",
        "Passage: They scored 3 and 4.\nQuestion: How many points in all?\nAnswer: 7\n",
        ("7", "seven"),
    ),
    (
        "DROP",
        {
            "passage": "Peace came on 27 February 1617.",
            "question": "When did it come?",
            "answers_spans": {"spans": ["27 February 1617"], "types": ["date"]},
        },
        "Passage: Peace came on 27 February 1617.\nQuestion: When did it come?\nAnswer:",
        "Passage: Peace came on 27 February 1617.\nQuestion: When did it come?\nAnswer: 27 February 1617\n",
        ("27 February 1617",),
    ),
]


@pytest.mark.parametrize("name, row, expected", CHOICES, ids=names_only)
def test_a_choice(name, row, expected):
    sample = TASKS[name].to_sample(row, "here")
    assert sample.prompt == expected.prompt
    assert list(sample.candidates) == expected.candidates
    assert sample.right == expected.right
    assert sample.sfc_prompt == expected.sfc_prompt
    assert list(sample.sfc_candidates) == expected.sfc_candidates
    assert sample.demonstration == expected.candidates[expected.right[0]]
    assert not sample.answers
    assert not TASKS[name].generation


@pytest.mark.parametrize("name, row, prompt, trained, answers", GENERATIONS, ids=names_only)
def test_a_generation(name, row, prompt, trained, answers):
    sample = TASKS[name].to_sample(row, "here")
    assert (sample.prompt, sample.candidates, sample.right, sample.answers) == (prompt, (trained,), (0,), answers)
    assert sample.demonstration == trained.removesuffix("\n")
    assert sample.sfc_prompt is None
    assert TASKS[name].generation


def test_each_of_mezo_s_tasks_has_three_examples():
    names = [name for name, *_ in CHOICES + GENERATIONS]
    mezo = ["SST2", "RTE", "CB", "BoolQ", "WSC", "WIC", "MultiRC", "Copa", "ReCoRD", "SQuAD", "DROP"]
    assert list(TASKS) == mezo
    assert [names.count(name) for name in mezo] == [3] * 11


def test_metrics_and_separator_are_mezo_s():
    assert {name for name, task in TASKS.items() if task.metrics[0] == "f1"} == {"SQuAD", "DROP"}
    assert {task.metrics[0] for name, task in TASKS.items() if name not in ("SQuAD", "DROP")} == {"accuracy"}
    assert {task.separator for task in TASKS.values()} == {"\n\n"}


class TestTheOption:
    """The tokens that are scored are those that MeZO counts: all that the candidate has beyond the prompt."""

    @pytest.mark.parametrize("name, row, expected", CHOICES, ids=names_only)
    def test_it_is_as_long_as_mezo_s(self, shared_tokenizer, name, row, expected):
        from xgblora.scoring import encode

        tokenizer = shared_tokenizer("opt-tokenizer")
        example = encode(TASKS[name].to_sample(row, "here"), tokenizer, max_length=512)
        prompt = len(tokenizer(expected.prompt)["input_ids"])
        lengths = [len(tokenizer(candidate)["input_ids"]) - prompt for candidate in expected.candidates]
        assert [len(option) for option in example.options] == lengths


@pytest.mark.parametrize(
    "name, row, said",
    [
        ("BoolQ", {"passage": "p", "question": "", "answer": True}, "the question is empty"),
        ("BoolQ", {"passage": "p", "question": "q", "answer": 2}, "answer=2: must be true, false, 1 or 0"),
        (
            "CB",
            {"premise": "p", "hypothesis": "h", "label": -1},
            "label=-1: must be entailment, contradiction, neutral",
        ),
        ("RTE", {"premise": "p", "hypotesis": "h", "label": 0}, "no column hypothesis; did you mean hypotesis?"),
        ("RTE", {"premise": None, "hypothesis": "h", "label": 0}, "premise is empty where text is needed"),
        ("Copa", {"premise": "p", "choice1": "a", "choice2": "b", "question": "why", "label": 0}, "question=why"),
        ("Copa", {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 2}, "label=2"),
        ("ReCoRD", {"passage": "p", "query": "q", "entities": ["A"], "answers": ["B"]}, "none of the entities"),
        ("ReCoRD", {"passage": "p", "query": "q", "entities": "A", "answers": []}, "entities is a text where a list"),
        ("SQuAD", {"title": "t", "context": "c", "question": "q", "answers": {"text": []}}, "there is no answer"),
        ("SQuAD", {"title": "t", "context": "c", "question": "q", "answers": "a"}, "a text stands where an object"),
        ("DROP", {"passage": "p", "question": "q", "answers": {}}, "no column answers_spans; did you mean answers?"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(name, row, said):
    with pytest.raises(InputError) as error:
        TASKS[name].to_sample(row, "data.jsonl line 7")
    assert str(error.value).startswith("data.jsonl line 7: ")
    assert said in str(error.value)


def test_samples_can_be_made_by_hand():
    assert Sample("a", ("a b",), 0, "here").right == (0,)
