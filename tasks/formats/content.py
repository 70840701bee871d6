"""What keeps an answer's content in check beside its form: length, repetition, topic, echo."""

from dataclasses import dataclass

from tasks.formats.forms import words
from tasks.repetition import different_runs

LEAST_WORDS, MOST_WORDS = 3, 120
TOO_LONG = 240  # words at which nothing is left
FRESH = 0.8  # share of different three-word sequences from which on an answer counts as free of repetition
STALE = 0.3  # at or below it, nothing is left
ECHO = 0.9  # share of an answer's words, in order, that are the prompt's: it only says it again
OFF_TOPIC = 0.6  # what is left of an answer without any content word of the prompt
WITHOUT_TOPIC = frozenset({"feelings", "ideas"})
"""Families whose answers need no word of the prompt: carrots are vegetables, and "I'm sorry" is a good reply."""
_STEM = 4  # letters that two words must share from the beginning to be about the same thing

# Words that any prompt or answer may have, so sharing them says nothing.
_COMMON = frozenset(
    words(
        "a about after all also am an and another any anything are as at be because been before better between but by "
        "can choose compare could decide did do does don't draft easy first for from get give good had hand has have "
        "help her here him his homework how i i'd i'm i've if in is it it's its just know like make me mind more my "
        "name need never no not of okay on one opinion or other our out please prefer quick question reason recommend "
        "remind right say sentence should show simple sister some someone something sound start suggest tell than "
        "thanks that the their them then there they thing think this to topic torn two us used using version want was "
        "way we week were what what's when where which who will with wonder wondering word wording would you your"
    )
)


@dataclass(frozen=True)
class Content:
    """Shares that are left of an answer after each check, 1 = nothing to object to; their product is the content."""

    length: float
    repetition: float
    topic: float
    echo: float

    @property
    def factor(self) -> float:
        """All checks together, 0..1."""
        return self.length * self.repetition * self.topic * self.echo


def content_of(prompt: str, answer: str, family: str) -> Content:
    """The checks of an answer to the user turn ``prompt``; any text is accepted."""
    return Content(_length(answer), _repetition(answer), _topic(prompt, answer, family), _echo(prompt, answer))


def shared_words(prompt: str, answer: str) -> list[str]:
    """The content words of ``prompt`` that ``answer`` takes up: those that begin with the same four letters."""
    said = {word[:_STEM] for word in words(answer)}
    return [word for word in dict.fromkeys(words(prompt)) if word not in _COMMON and word[:_STEM] in said]


def repetition_of(answer: str) -> float:
    """Different three-word sequences among all, 0..1; 1 for fewer than four words. Marks of list items do not count."""
    return different_runs([word for word in words(answer) if not word.isdigit()], 3)


def _length(answer: str) -> float:
    count = len(words(answer))
    if count < LEAST_WORDS:
        return count / LEAST_WORDS
    return min(1.0, max(0.0, (TOO_LONG - count) / (TOO_LONG - MOST_WORDS)))


def _repetition(answer: str) -> float:
    return min(1.0, max(0.0, (repetition_of(answer) - STALE) / (FRESH - STALE)))


def _topic(prompt: str, answer: str, family: str) -> float:
    return 1.0 if family in WITHOUT_TOPIC or shared_words(prompt, answer) else OFF_TOPIC


def _echo(prompt: str, answer: str) -> float:
    """0 when the answer is little but a stretch of the prompt, word for word; else 1."""
    asked, said = " ".join(words(prompt)), words(answer)
    if not said:
        return 1.0
    longest = max(
        (end - start for start in range(len(said)) for end in _ends(said, start) if _within(said[start:end], asked)),
        default=0,
    )
    return 0.0 if longest >= ECHO * len(said) and longest >= LEAST_WORDS else 1.0


def _ends(said: list[str], start: int) -> range:
    """Only stretches that are long enough to be an echo."""
    least = max(LEAST_WORDS, -int(-ECHO * len(said) // 1))
    return range(start + least, len(said) + 1)


def _within(stretch: list[str], text: str) -> bool:
    return f" {' '.join(stretch)} " in f" {text} "
