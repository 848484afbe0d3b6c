"""Rows of passages, questions and premises, and what is expected of them."""

from tests.tasks.prompts.expected import Expected

CHOICES = [
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
