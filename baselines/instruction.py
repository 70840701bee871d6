"""Instructions that methods put in front of a conversation: refused where the tokenizer cannot write their words."""

from collections.abc import Callable, Sequence


def check_instruction(whose: str, text: str, unknown_words: Callable[[str], Sequence[str]]) -> None:
    """Raise ValueError for an instruction with a word that ``unknown_words`` finds: the model would not read it.

    A single such word is refused: whatever it says is lost. ``whose`` names it, as in "prompt: instruction".
    """
    words = unknown_words(text)
    if words:
        raise ValueError(
            f"{whose} has {len(words)} of {len(set(text.split()))} words that the base model's tokenizer has no token "
            f"for: {', '.join(words)}; write it in words of its vocabulary"
        )
