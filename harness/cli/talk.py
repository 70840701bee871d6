"""``dspa-bench generate`` and ``chat``: let an aligned model answer, beside its base or another artifact."""

import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from harness.cli.options import MAX_SEED, AsJSON, Device, MovedBase, MovedSAEs, command_group, moved_saes, print_json
from harness.quiet import without_progress_bars

if TYPE_CHECKING:
    from harness.data.triples import Conversation
    from harness.model.aligned import AlignedModel
    from harness.responder import Completion

commands = command_group()

Artifact = Annotated[Path, typer.Argument(help="Artifact folder, as written by fit or run.", metavar="ARTIFACT")]
Against = Annotated[
    str | None,
    typer.Option(metavar="base|ARTIFACT", help="Let this one answer, too: the model's own base, or another artifact."),
]
System = Annotated[str | None, typer.Option(help="A system turn in front of every conversation.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 is greedy.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the sampling.")]


@commands.command(epilog='Example: `dspa-bench generate dpo-300 --prompt "How do I brew good coffee?" --against base`')
def generate(
    artifact: Artifact,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What the user says; repeat it for more conversations.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="More of them: .txt with one a line, or JSONL with prompt, a text or a list of messages.",
            show_default="none",
        ),
    ] = None,
    against: Against = None,
    system: System = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    base: MovedBase = None,
    sae: MovedSAEs = None,
    as_json: AsJSON = False,
    device: Device = "cpu",
) -> None:
    """Let an aligned model answer: one answer per prompt, in order, separated by a blank line.

    With --against each prompt is shown with the answers of both. As JSON: a list of prompts with their answers by
    model.

    Exit code 2: a prompt does not fit the context.
    """
    conversations = [*_given(prompt or []), *([] if prompts is None else read_prompts(prompts))]
    if not conversations:
        raise ValueError("there is nothing to answer: give --prompt TEXT or --prompts FILE")
    asked = [_with_system(conversation, system) for conversation in conversations]
    for message in (message for conversation in asked for message in conversation):
        if message["content"] != message["content"].encode("utf-8", "replace").decode():
            raise ValueError(f"{message['content'][:60]!a} is no text: it holds half a character; give UTF-8")
    without_progress_bars()
    moved = _Moved(base, moved_saes(sae), device)
    models = _models(artifact, against, moved)
    how = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    answers = {name: _answers(model, asked, **how) for name, model in models.items()}
    if as_json:
        rows = ({name: _row(found[n]) for name, found in answers.items()} for n in range(len(asked)))
        print_json([{"prompt": one, "answers": row} for one, row in zip(asked, rows, strict=True)])
    elif against is None:
        print("\n\n".join(completion.text for completion in answers[str(artifact)]))
    else:
        for n, conversation in enumerate(conversations):
            print(f"{'' if n == 0 else chr(10)}> {conversation[-1]['content']}")
            for name, found in answers.items():
                print(f"\n[{name}]\n{found[n].text}")


@commands.command(epilog="Example: `dspa-bench chat dpo-300 --against base`")
def chat(
    artifact: Artifact,
    against: Against = None,
    system: System = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    base: MovedBase = None,
    sae: MovedSAEs = None,
    device: Device = "cpu",
) -> None:
    """Talk to an aligned model, turn by turn; it sees the whole conversation.

    `/reset` begins a new conversation, `/against base` (or an artifact) lets another model answer, too, each in a
    conversation of its own, `/against` ends that, `/quit` or the end of the input ends it all.
    """
    without_progress_bars()
    moved = _Moved(base, moved_saes(sae), device)
    models = _models(artifact, against, moved)
    print("/reset begins anew, /against base or ARTIFACT compares, /quit ends", file=sys.stderr)
    said: dict[str, Conversation] = dict.fromkeys(models, ())
    turn = 0
    while (line := _line()) is not None and line != "/quit":
        if line == "/reset":
            said = dict.fromkeys(models, ())
        elif line.split(maxsplit=1)[:1] == ["/against"]:
            other = line.removeprefix("/against").strip() or None
            try:
                models = _models(artifact, other, moved, loaded=models)
            except ValueError as problem:
                print(f"error: {problem}", file=sys.stderr)
                continue
            said = dict.fromkeys(models, ())
        elif line.startswith("/"):
            print(f"{line.split()[0]!r} is no command; /reset, /against NAME, /quit", file=sys.stderr)
        elif line:
            turn += 1
            for name, model in models.items():
                conversation: Conversation = (*said[name], {"role": "user", "content": line})
                how = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed + turn}
                (completion,) = model.generate([_with_system(conversation, system)], **how)
                if completion.error is not None:
                    print(f"error: {completion.error}; /reset begins a new conversation", file=sys.stderr)
                    continue
                print(completion.text if len(models) == 1 else f"[{name}] {completion.text}")
                said[name] = (*conversation, {"role": "assistant", "content": completion.text})


class _Moved(NamedTuple):
    """Where artifacts find their base and SAEs now, where not in their old places."""

    base: str | None
    saes: dict[str, str]
    device: str

    def load(self, artifact: Path) -> "AlignedModel":
        from harness.model.aligned import AlignedModel

        return AlignedModel.load(artifact, base=self.base, saes=self.saes, device=self.device)


def read_prompts(path: Path) -> "list[Conversation]":
    """Conversations that end with a user turn, one a line of a .txt file or JSONL with ``prompt``.

    Raises ValueError naming file and line for one that is not, and for a file without any.
    """
    from harness.data.triples import conversation, read_prompt
    from harness.files import read_jsonl, read_text

    if path.suffix == ".txt":
        found = [conversation(line.strip()) for line in read_text(path, "prompts").splitlines() if line.strip()]
        if not found:
            raise ValueError(f"{path}: the prompts file is empty")
        return found
    found = []
    for number, row in read_jsonl(path, "prompts"):
        if "prompt" not in row:
            raise ValueError(f"{path}:{number}: missing key 'prompt', a text or a list of messages")
        try:
            found.append(read_prompt(row["prompt"]))
        except ValueError as problem:
            raise ValueError(f"{path}:{number}: {problem}") from None
    return found


def _given(texts: Sequence[str]) -> "list[Conversation]":
    from harness.data.triples import conversation

    if not all(text.strip() for text in texts):
        raise ValueError("--prompt is empty; give what the user says")
    return [conversation(text) for text in texts]


def _with_system(conversation: "Conversation", system: str | None) -> "Conversation":
    if system is None:
        return conversation
    if conversation[0]["role"] == "system":
        raise ValueError("--system: a prompt has a system turn of its own; leave one of them out")
    return ({"role": "system", "content": system}, *conversation)


def _models(
    artifact: Path, against: str | None, moved: _Moved, loaded: "dict[str, AlignedModel] | None" = None
) -> "dict[str, AlignedModel]":
    """Name -> model: the artifact, and what it is compared with; what is ``loaded`` already is taken from there."""
    first = (loaded or {}).get(str(artifact)) or moved.load(artifact)
    found = {str(artifact): first}
    if against == "base":
        return found | {"base": first.unaligned()}
    if against is not None:
        if Path(against) == artifact:
            raise ValueError(f"--against {against!r} is the artifact itself; give base or another one")
        return found | {against: moved.load(Path(against))}
    return found


def _answers(model: "AlignedModel", asked: "Sequence[Conversation]", **how: float) -> "list[Completion]":
    completions = model.generate(asked, **how)  # type: ignore[arg-type]
    for conversation, completion in zip(asked, completions, strict=True):
        if completion.error is not None:
            raise ValueError(f"no answer to {shorten(conversation[-1]['content'], 60)!r}: {completion.error}")
    return completions


def _row(completion: "Completion") -> dict[str, object]:
    return {"text": completion.text, "tokens": len(completion.token_ids), "finished": completion.finished}


def _line() -> str | None:
    """What the user says; None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None
