"""The judge on this machine: its replies are the model's own, kept by content, and failures stay failures."""

import json
import shutil
from types import SimpleNamespace

import pytest

from harness.data.refs import ModelRef
from harness.data.triples import Message, conversation
from harness.judging import Answer, Comparison, Rating
from harness.judging.local import LocalJudge
from harness.judging.prompted import rating_prompt
from harness.model.aligned import AlignedModel


def rating(number: int) -> Rating:
    return Rating((*conversation(f"question {number}"), Message(role="assistant", content=f"answer {number}")))


@pytest.fixture
def judge(tiny_folders) -> LocalJudge:
    return LocalJudge(model={"path": str(tiny_folders["llama"])}, max_new_tokens=12, batch_size=3)


class Talker:
    """Stands in for the model: what it is told to reply, and how often it was asked."""

    def __init__(self, reply) -> None:
        self.reply, self.batches = reply, []

    def prompt_ids(self, conversation) -> list[int]:
        return list(range(len(conversation[-1]["content"])))

    def generate(self, conversations, *, max_new_tokens: int, batch_size: int):
        self.batches.append(len(conversations))
        texts = [self.reply(conversation[-1]["content"]) for conversation in conversations]
        return [
            SimpleNamespace(text=text, token_ids=(5, 6), prompt_tokens=9, error=None, finished=not text.endswith("..."))
            for text in texts
        ]


def talking(judge: LocalJudge, reply) -> Talker:
    talker = Talker(reply)
    judge.__dict__["_aligned"] = talker
    return talker


def test_what_it_is_shown_goes_through_the_model_in_its_chat_format(judge, tiny_folders):
    """The tiny model knows no word of the prompt and babbles: failures that show what it said."""
    requests = [rating(n) for n in range(5)]
    verdicts = judge.rate(requests)
    model = AlignedModel.from_base(ModelRef(path=str(tiny_folders["llama"])))
    expected = model.generate([rating_prompt(request) for request in requests], max_new_tokens=12, batch_size=1)
    for verdict, completion in zip(verdicts, expected, strict=True):
        assert verdict.value is None
        assert verdict.raw == completion.text
        wrong = "no rating" if completion.finished else "cut off at 12 tokens"
        assert wrong in (verdict.error or "")


def test_verdicts_are_read_from_its_replies_in_order_whatever_the_batches(judge):
    talker = talking(judge, lambda text: "Fine. [[1]]" if "answer 1" in text else "[[7]]")
    assert [v.value for v in judge.rate([rating(n) for n in range(7)])] == [7, 1, 7, 7, 7, 7, 7]
    assert talker.batches == [3, 3, 1]
    talking(judge, lambda text: "[[B]]")
    assert [v.value for v in judge.compare([Comparison.of(conversation("q"), "x", "y")])] == [2.0]
    talking(judge, lambda text: "[[4]]")
    assert [v.value for v in judge.harm([Answer(conversation("q"), "x")])] == [4.0]
    talking(judge, lambda text: "[[YES]]")
    assert [v.value for v in judge.refusal([Answer(conversation("q"), "x")])] == [1.0]


def test_a_reply_that_is_cut_off_or_unreadable_is_a_failure_with_its_text(judge):
    talking(judge, lambda text: "[[3]] and so on..." if "question 1" in text else "no idea")
    cut, unreadable = judge.rate([rating(1), rating(2)])
    assert (cut.value, cut.raw) == (None, "[[3]] and so on...")
    assert "cut off at 12 tokens" in (cut.error or "")
    assert (unreadable.value, unreadable.raw) == (None, "no idea")


def test_readable_replies_are_kept_and_only_the_others_are_asked_again(judge, tmp_path):
    first = judge.at(tmp_path)
    talker = talking(first, lambda text: "[[5]]" if "question 1" in text else "hm")
    assert [v.value for v in first.rate([rating(1), rating(2)])] == [5, None]
    second = judge.at(tmp_path)
    talker = talking(second, lambda text: "[[6]]")
    assert [v.value for v in second.rate([rating(1), rating(2)])] == [5, 6]
    assert talker.batches == [1]


def test_replies_are_kept_by_the_models_content_not_by_its_place(judge, tiny_folders, tmp_path):
    moved = LocalJudge(model={"path": str(shutil.copytree(tiny_folders["llama"], tmp_path / "llama"))})
    other = LocalJudge(model={"path": str(tiny_folders["qwen3"])})
    assert moved.identity == judge.identity != other.identity
    assert moved.label == judge.label != other.label
    assert judge.label.startswith("llama-") and str(tiny_folders["llama"]) not in json.dumps(judge.identity)
    assert "llama" in judge.statement and "dspa-bench's own prompts" in judge.statement


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": {"path": "nothing"}}, "no config.json"),
        ({"max_new_tokens": 256}, "leaves no room for a question"),
        ({"device": "abacus"}, "abacus"),
        ({"mt_bench_prompts": "nothing.jsonl"}, "does not exist"),
    ],
)
def test_what_cannot_serve_is_refused_before_any_work(tiny_folders, changes, complaint):
    settings = {"model": {"path": str(tiny_folders["llama"])}, "max_new_tokens": 12}
    LocalJudge(**settings).check()
    with pytest.raises(ValueError, match=complaint):
        LocalJudge(**(settings | changes)).check()


def test_a_folder_without_weights_is_refused(tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folders["llama"], tmp_path / "llama", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ValueError, match="has no weights"):
        LocalJudge(model={"path": str(folder)}, max_new_tokens=12).check()
