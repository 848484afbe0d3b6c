"""Rows whose answers are generated, with the prompt, the text that is trained and the answers that count."""

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
