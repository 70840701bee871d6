"""The forms of answers, each a score that a program can check: 1 = has it, 0 = has it not.

Scores read the text alone, as a person would, and not how it came to its end. For an answer that was cut off this
means: what stands there counts and what is missing is not made up. A bare mark at the end ("4.") is no item; the last
item of a list counts even if it breaks off; a sentence or quotation that never ends is half of one (see each form).
"""

import re
from collections.abc import Callable, Sequence

LEAST_ITEMS = 3
"""Items of a list that make it whole."""

_NUMBER = re.compile(r"^(?:\*\*)?(?:step\s+)?(\d{1,2})(?:[.):])(?:\*\*)?\s+(\S.*)$", re.IGNORECASE)
_BULLET = re.compile(r"^[-*•–]\s+(\S.*)$")
_BARE = re.compile(r"^(?:[-*•–]|\d{1,2}[.)]?)$")  # a mark without anything behind it
_ONE_HAND = re.compile(r"\bon (?:the )?one hand\b", re.IGNORECASE)
_OTHER_HAND = re.compile(r"\bon the other(?: hand)?\b", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:dear|hello|hi|hey)(?: [^\W\d]+(?:'s)?){1,4} ?[,:!](?=\s)", re.IGNORECASE)
_QUOTES = {'"': '"', "“": "”"}
_SHORT_FOR = r"(?:mr|mrs|ms|dr|st|vs|prof|no|ca|approx|e\.g|i\.e|etc|[a-z]\.[a-z]|[a-z])"
_ABBREVIATION = re.compile(rf"(?:^|[\s(])({_SHORT_FOR})\.$", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text in lower case; digits count as words, marks do not."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def lines(text: str) -> list[str]:
    """The lines that say something, without the space around them; a bare list mark says nothing."""
    found = (line.strip() for line in text.splitlines())
    return [line for line in found if line and not _BARE.match(line)]


def sentences(text: str) -> list[str]:
    """The sentences of a text, the last one even if it has no end. A stop after an abbreviation, an initial or inside
    a number ends none; a line break does."""
    found: list[str] = []
    for line in lines(text):
        start = 0
        for stop in re.finditer(r"[.!?]+[\"”')*]*(?=\s|$)", line):
            piece = line[start : stop.end()]
            if stop.end() < len(line) and _ABBREVIATION.search(piece):
                continue
            found.append(piece.strip())
            start = stop.end()
        if rest := line[start:].strip():
            found.append(rest)
    return [sentence for sentence in found if words(sentence)]


def is_ended(sentence: str) -> bool:
    """Whether a sentence has its stop."""
    return re.search(r"[.!?]+[\"”')*]*$", sentence) is not None


def steps(text: str) -> float:
    """Numbered steps, each on a line of its own, from 1 on without a gap, at least `LEAST_ITEMS` different ones.

    Share of the lines that are numbered x share of those in their place x different steps / 3 (1 at most). One numbered
    line is no list: 0.
    """
    found = [(int(match[1]), match[2]) for line in lines(text) if (match := _NUMBER.match(line))]
    if len(found) < 2:
        return 0.0
    in_place = sum(number == place for place, (number, _) in enumerate(found, 1)) / len(found)
    return _share(found, text) * in_place * _enough([item for _, item in found])


def bullets(text: str) -> float:
    """A bullet list: every line begins with -, * or •, at least `LEAST_ITEMS` different ones.

    Share of the lines that are bullets x different ones / 3 (1 at most). One bullet is no list: 0.
    """
    found = [match[1] for line in lines(text) if (match := _BULLET.match(line))]
    return 0.0 if len(found) < 2 else _share(found, text) * _enough(found)


def sentence(text: str) -> float:
    """Exactly one sentence that states something: 1; with an end that is missing, 0.5; two sentences, 0.25; else 0.

    A list, a question, or a text all in quotation marks is none of these.
    """
    if _is_list(text) or quoted(text) >= 0.5:
        return 0.0
    found = sentences(text)
    if not found or found[-1].rstrip("\"”')*").endswith("?") or len(found) > 2:
        return 0.0
    if len(found) == 2:
        return 0.25
    return 1.0 if is_ended(found[0]) else 0.5


def sides(text: str) -> float:
    """Both sides: "on the one hand" with three words or more behind it, then "on the other hand" with as many.

    1 when the answer begins so; what stands before counts against it by its share of the words. 0.5 at most when both
    sides say the same, and 0 for a list or when one of them is missing.
    """
    one = _ONE_HAND.search(text)
    other = None if one is None else _OTHER_HAND.search(text, one.end())
    if one is None or other is None or _is_list(text):
        return 0.0
    first, second = words(text[one.end() : other.start()]), words(text[other.end() :])
    if len(first) < 3 or len(second) < 3:
        return 0.0
    share = 1 - len(words(text[: one.start()])) / len(words(text))
    return share * (0.5 if first == second else 1.0)


def letter(text: str) -> float:
    """A letter: it begins by addressing someone ("Dear friend,", "Hello Anna,"), then at least five words, no list.

    1; 0 without the address. An end such as "Yours, ..." is not asked for, so where a letter breaks off plays no part.
    """
    match = _ADDRESS.match(text.strip())
    return float(match is not None and len(words(text.strip()[match.end() :])) >= 5 and not _is_list(text))


def quoted(text: str) -> float:
    """One text in quotation marks and nothing else: 1; with words around it (a preamble, a remark), half the share of
    words inside; 0.5 when the answer begins with the mark and never closes it. A list is none: 0.
    """
    text = text.strip()
    if _is_list(text):
        return 0.0
    opening = min((text.find(mark) for mark in _QUOTES if mark in text), default=-1)
    if opening < 0:
        return 0.0
    closing = text.rfind(_QUOTES[text[opening]], opening + 1)
    if closing < 0:
        return 0.5 if opening == 0 and words(text) else 0.0
    inside, all_words = len(words(text[opening + 1 : closing])), len(words(text))
    if not inside:
        return 0.0
    apart = opening > 0 or bool(words(text[closing + 1 :])) or _QUOTES[text[opening]] in text[opening + 1 : closing]
    return 0.5 * inside / all_words if apart else 1.0


CHECKS: dict[str, Callable[[str], float]] = {
    "steps": steps,
    "sentence": sentence,
    "sides": sides,
    "bullets": bullets,
    "letter": letter,
    "quoted": quoted,
}
"""Form -> its score of an answer, 0..1."""


def scores(text: str) -> dict[str, float]:
    """Every form's score of an answer."""
    return {form: check(text) for form, check in CHECKS.items()}


def form_found(text: str) -> str:
    """The form that an answer has more of than of any other, at least half; "none" where there is none."""
    found = scores(text)
    best = max(found, key=lambda form: found[form])
    return best if found[best] >= 0.5 else "none"


def _is_list(text: str) -> bool:
    """Whether two lines or more are marked as items."""
    return sum(bool(_NUMBER.match(line) or _BULLET.match(line)) for line in lines(text)) > 1


def _share(found: Sequence[object], text: str) -> float:
    return len(found) / len(lines(text))


def _enough(items: Sequence[str]) -> float:
    """Different items, of `LEAST_ITEMS`; items with the same words are one."""
    return min(len({tuple(words(item)) for item in items if words(item)}) / LEAST_ITEMS, 1.0)
