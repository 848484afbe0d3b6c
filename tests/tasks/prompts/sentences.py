"""Rows of sentences and pairs of sentences, and what is expected of them."""

from tests.tasks.prompts.expected import Expected

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
]
