"""A chat server on this machine with real tiny models behind it, as an engine that a suite can name."""

from contextlib import contextmanager

from tests.judge_server import Server, completion, serving


class ModelServer(Server):
    """Answers as ``models`` (name -> AlignedModel) do. ``counts`` changes the number of prompt tokens it tells."""

    counts = staticmethod(lambda n: n)

    def plan(self, words):
        asked = self.requests[-1][1]  # the one that is being answered: the caller has the lock
        talk = tuple({"role": m["role"], "content": m["content"]} for m in asked["messages"])
        how = {"max_new_tokens": asked["max_tokens"], "temperature": asked["temperature"], "seed": asked["seed"]}
        (answer,) = self.models[asked["model"]].generate([talk], **how)
        usage = {"prompt_tokens": self.counts(answer.prompt_tokens), "completion_tokens": len(answer.token_ids)}
        return 200, completion(answer.text, "stop" if answer.finished else "length", usage=usage)


@contextmanager
def serving_models(models, **script):
    """A `ModelServer` of ``models`` until the end of the block."""
    with serving(kind=ModelServer, **script) as server:
        server.models = dict(models)
        yield server
