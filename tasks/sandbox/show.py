"""What the sandbox looks like: sample conversations, and what each family of requests prefers, as text."""

from random import Random

from tasks.sandbox.corpus import answer, conversation, prompt_for
from tasks.sandbox.oracle import rate
from tasks.sandbox.topics import TOPICS
from tasks.sandbox.world import FAMILIES, MARKERS, PREFERRED, SPOKEN


def show(seed: int = 0, conversations: int = 3) -> str:
    """What each family prefers, with a rated answer per register, and sample conversations, as text."""
    rng = Random(f"show:{seed}")
    lines = ["The sandbox: a planted world in which every family of requests prefers another way of speaking.", ""]
    lines += ["Registers and their marker words, which open every clause, stand inside it and close it:"]
    lines += [f"  {name:7}{', '.join(words)}" for name, words in MARKERS.items()]
    for family in FAMILIES:
        topic = rng.choice(sorted(name for name, topic in TOPICS.items() if topic.family == family))
        request, text = prompt_for(rng, topic, "corpus")
        lines += ["", f"{family}: prefers {PREFERRED[family]}", f"  user: {text}"]
        for register in dict.fromkeys(SPOKEN[request.family]):
            reply = answer(rng, request, register)
            lines.append(f"  [{rate(request, reply)[0]:4.1f}] starts {register}: {reply}")
    lines += ["", "From the training corpus, where a family's registers are equally frequent:"]
    for _ in range(conversations):
        lines.append("")
        lines += [f"  {message['role']}: {message['content']}" for message in conversation(rng)]
    return "\n".join(lines) + "\n"
