"""The words of the grammar, and those that the task asks for."""

from dataclasses import dataclass

NEGATIVE, POSITIVE = 0, 1


@dataclass(frozen=True)
class Question:
    """A prompt and the two words, by label, of which the model should prefer the right one."""

    prompt: str
    words: tuple[str, str]


# The task itself, and the same question in the words of the pre-training text:
# how well the model answers the second shows what the first can reach.
TASK_QUESTION = Question("{sentence} It was", ("terrible", "great"))
FAMILIAR_QUESTION = Question("{sentence} Overall it was", ("awful", "lovely"))


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

# Verdicts that follow a review, indexed by label; `{word}` is a verdict word.
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
