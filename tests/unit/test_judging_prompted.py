"""What a judge model is asked and how its texts are read; FastChat's published verdicts are the reference."""

import json
from collections.abc import Callable
from typing import ClassVar

import pytest
from pydantic import PrivateAttr

from harness.data.triples import conversation
from harness.evaluators.fastchat import files as fastchat
from harness.judging import Answer, Comparison, Rating, prompted
from harness.judging.fastchat_prompts import FastChatPrompts
from harness.judging.prompted import PromptedJudge, Reply

ONE = conversation([{"role": "user", "content": "Say {x} 100 %s."}, {"role": "assistant", "content": "first {y}"}])
TWO = (*ONE, {"role": "user", "content": "Again."}, {"role": "assistant", "content": "second"})
OTHER = (*ONE, {"role": "user", "content": "Again."}, {"role": "assistant", "content": "other"})


class Scripted(PromptedJudge):
    """Answers by `judge`'s ``say``; ``_asked`` is what it was asked."""

    name: ClassVar[str] = "scripted"
    label: ClassVar[str] = "scripted-v1"
    statement: ClassVar[str] = "Made up."
    _say: Callable = PrivateAttr()
    _asked: list = PrivateAttr(default_factory=list)

    def _ask(self, conversations, received):
        for index, question in enumerate(conversations):
            self._asked.append(question)
            said = self._say(question[-1]["content"])
            received(index, Reply(said) if isinstance(said, str) else said)


def judge(say, **settings):
    """A judge whose reply to a question is ``say`` of it, or always the text ``say``."""
    made = Scripted(**settings)
    made._say = (lambda text: say) if isinstance(say, str) else say
    return made


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Good. Rating: [[7]]", 7),
        ("[[7.5]] and then [[3]]", 7.5),
        ("Rating: [4]", 4),
        ("[4] but really [[6]]", 6),
        ("<think>maybe [[2]]</think> Rating: [[9]]", 9),
        ("[[10]]", 10),
    ],
)
def test_ratings_are_read_as_fastchat_reads_them(text, value):
    assert prompted.read_rating(text) == value


@pytest.mark.parametrize(
    "text", ["", "7", "Rating: 7/10", "[[seven]]", "[[0]]", "[[11]]", "[[-3]]", "<think>[[3]]</think> no"]
)
def test_a_text_without_a_rating_in_range_has_none(text):
    with pytest.raises(ValueError, match=r"no rating|outside 1 to 10"):
        prompted.read_rating(text)


def test_winners_and_refusals_are_read_and_contradictions_are_not():
    assert [prompted.read_winner(f"because. [[{c}]]") for c in "ABC"] == [1.0, 2.0, 1.5]
    assert [prompted.read_refusal(f"[[{word}]]") for word in ("YES", "NO")] == [1.0, 0.0]
    assert prompted.read_harm("[[5]]") == 5
    with pytest.raises(ValueError, match=r"names \[\[A\]\] and \[\[B\]\]"):
        prompted.read_winner("[[A]] or [[B]]")
    with pytest.raises(ValueError, match="names no verdict"):
        prompted.read_winner("A is better")
    with pytest.raises(ValueError, match="expected one of"):
        prompted.read_refusal("yes")
    with pytest.raises(ValueError, match="outside 1 to 5"):
        prompted.read_harm("[[6]]")


def test_the_published_prompts_and_scores_come_out_of_the_published_answers(data_folder):
    folder = data_folder / "mt_bench"
    questions = {q.question_id: q for q in fastchat.load_questions(folder / "question.jsonl")}
    references = {a.question_id: a.turns for a in fastchat.load_answers(folder / "reference_answer" / "gpt-4.jsonl")}
    answers = {
        (a.model_id, a.question_id): a.turns
        for path in (folder / "model_answer").glob("*.jsonl")
        for a in fastchat.load_answers(path)
    }
    prompts = FastChatPrompts.load(folder / "judge_prompts.jsonl")
    rows = [json.loads(line) for line in (folder / "judgments_gpt-4_single.jsonl").read_text().splitlines()]
    assert len(rows) == 320
    for row in rows:
        question, turn = questions[row["question_id"]], row["turn"]
        said = answers[row["model"], row["question_id"]]
        messages = [
            {"role": role, "content": text}
            for user, answer in zip(question.turns[:turn], said, strict=False)
            for role, text in (("user", user), ("assistant", answer))
        ]
        request = Rating(conversation(messages), references.get(row["question_id"], ())[:turn])
        (*_, shown) = prompts.prompt(request) or ()
        assert shown["content"] == row["user_prompt"]
        assert prompted.read_rating(row["judgment"]) == row["score"]


def test_published_judgments_without_a_rating_are_failures(data_folder):
    text = (data_folder / "mt_bench" / "judgments_with_failures.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    for row in rows:
        if 1 <= row["score"] <= 10:
            assert prompted.read_rating(row["judgment"]) == row["score"]
        else:
            with pytest.raises(ValueError, match=r"no rating|outside"):
                prompted.read_rating(row["judgment"])
    assert sum(row["score"] == -1 for row in rows) > len(rows) / 2


def write_prompts(path, **changes):
    """A file like FastChat's with prompts of our own; ``changes`` replace a key of the prompt pair-v2."""
    blanks = {
        "single-v1": "{question}|{answer}",
        "single-math-v1": "{question}|{ref_answer_1}|{answer}",
        "single-v1-multi-turn": "{question_1}|{answer_1}|{question_2}|{answer_2}",
        "single-math-v1-multi-turn": "{question_1}|{ref_answer_1}|{question_2}|{ref_answer_2}|{answer_1}|{answer_2}",
        "pair-v2": "{question}|{answer_a}|{answer_b}",
        "pair-math-v1": "{question}|{ref_answer_1}|{answer_a}|{answer_b}",
        "pair-v2-multi-turn": "{question_1}|{answer_a_1}|{question_2}|{answer_a_2}|{answer_b_1}|{answer_b_2}",
        "pair-math-v1-multi-turn": "{question_1}|{question_2}|{ref_answer_1}|{ref_answer_2}|{answer_a_1}|{answer_a_2}"
        "|{answer_b_1}|{answer_b_2}",
        "another": "{anything}",
    }
    rows = [
        {
            "name": name,
            "system_prompt": f"system of {name}",
            "prompt_template": template,
            "output_format": "[[A]]" if name.startswith("pair") else "[[rating]]",
        }
        | (changes if name == "pair-v2" else {})
        for name, template in blanks.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["name"] is not None))
    return path


@pytest.mark.parametrize(
    ("request_", "system", "shown"),
    [
        (Rating(ONE), "single-v1", "Say {x} 100 %s.|first {y}"),
        (Rating(ONE, ("r1",)), "single-math-v1", "Say {x} 100 %s.|r1|first {y}"),
        (Rating(TWO), "single-v1-multi-turn", "Say {x} 100 %s.|first {y}|Again.|second"),
        (Rating(TWO, ("r1", "r2")), "single-math-v1-multi-turn", "Say {x} 100 %s.|r1|Again.|r2|first {y}|second"),
        (Comparison.of(ONE[:1], "a", "b"), "pair-v2", "Say {x} 100 %s.|a|b"),
        (Comparison(ONE, ONE, ("r1",)), "pair-math-v1", "Say {x} 100 %s.|r1|first {y}|first {y}"),
        (Comparison(TWO, OTHER), "pair-v2-multi-turn", "Say {x} 100 %s.|first {y}|Again.|second|first {y}|other"),
        (
            Comparison(TWO, OTHER, ("r1", "r2")),
            "pair-math-v1-multi-turn",
            "Say {x} 100 %s.|Again.|r1|r2|first {y}|second|first {y}|other",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "v" in value and "|" not in value else "",
)
def test_fastchats_prompt_is_chosen_by_turns_references_and_kind(tmp_path, request_, system, shown):
    asked = judge("[[5]] [[A]]", mt_bench_prompts=write_prompts(tmp_path / "p.jsonl"))
    asked.check()
    verb = asked.rate if isinstance(request_, Rating) else asked.compare
    (verdict,) = verb([request_])
    assert verdict.error is None
    assert asked._asked == [({"role": "system", "content": f"system of {system}"}, {"role": "user", "content": shown})]
    assert "FastChat's" in asked.wording


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": None}, "no prompt pair-v2; give judge_prompts.jsonl"),
        ({"prompt_template": "{question} {answer_a}"}, ":5: pair-v2: the blanks must be answer_a, answer_b, q"),
        ({"prompt_template": "{question.__class__} {answer_a} {answer_b}"}, ":5: pair-v2: the blanks must be"),
        ({"prompt_template": "{question"}, ":5: "),
        ({"prompt_template": None}, ":5: pair-v2: system_prompt and prompt_template must be strings"),
        ({"output_format": "[[rating]]"}, r":5: pair-v2: output_format must be '\[\[A\]\]'"),
    ],
)
def test_a_prompts_file_that_is_not_fastchats_is_refused_before_work(tmp_path, changes, error):
    with pytest.raises(ValueError, match=error):
        judge("", mt_bench_prompts=write_prompts(tmp_path / "p.jsonl", **changes)).check()


def test_a_prompts_file_that_is_not_there_or_no_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        judge("", mt_bench_prompts=tmp_path / "none.jsonl").check()
    (tmp_path / "bad.jsonl").write_text('{"name": 1}\n{')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: not valid JSON"):
        judge("", mt_bench_prompts=tmp_path / "bad.jsonl").check()


def test_a_reference_for_one_turn_of_two_is_a_failure_and_nobody_is_asked(tmp_path):
    asked = judge("[[5]]", mt_bench_prompts=write_prompts(tmp_path / "p.jsonl"))
    good, bad = asked.rate([Rating(ONE), Rating(TWO, ("r1",))])
    assert good.value == 5
    assert bad.value is None and "needs a reference for each of the 2 turns" in bad.error
    assert len(asked._asked) == 1


@pytest.mark.parametrize("messages", [(*TWO, *TWO), ({"role": "system", "content": "s"}, *ONE)], ids=["four", "system"])
def test_what_fastchat_has_no_prompt_for_is_asked_in_our_words(tmp_path, messages):
    asked = judge("[[5]]", mt_bench_prompts=write_prompts(tmp_path / "p.jsonl"))
    assert asked.rate([Rating(messages)])[0].value == 5
    ((question,),) = asked._asked
    for message in messages:
        assert f"<{message['role']}>\n{message['content']}\n</{message['role']}>" in question["content"]


def test_our_own_prompts_show_everything_that_is_to_be_judged():
    asked = judge(lambda text: "[[B]] [[2]]" if "<conversation_b>" in text or "grade" in text else "[[NO]] [[2]]")
    assert asked.rate([Rating(TWO, ("good one", "good two"))])[0].value == 2
    assert asked.compare([Comparison(TWO, OTHER, ("good one",))])[0].value == 2
    assert asked.harm([Answer(ONE[:1], "the answer")])[0].value == 2
    assert asked.refusal([Answer(ONE[:1], "the answer")])[0].value == 0
    rated, compared, harm, refusal = (question[-1]["content"] for question in asked._asked)
    assert all("Say {x} 100 %s." in text for text in (rated, compared, harm, refusal))
    assert '<good_answer turn="2">\ngood two\n</good_answer>' in rated
    assert compared.index("second") < compared.index("<conversation_b>") < compared.index("other")
    assert '<good_answer turn="1">' in compared
    assert "the answer" in harm and "the answer" in refusal
    assert all(question[-1]["role"] == "user" and len(question) == 1 for question in asked._asked)


def test_swapping_a_comparison_swaps_what_is_shown_and_the_verdict_follows():
    asked = judge(lambda text: "[[A]]" if text.index("wins") < text.index("loses") else "[[B]]")
    pair = Comparison.of(ONE[:1], "wins", "loses")
    assert [v.value for v in asked.compare([pair, pair.swapped])] == [1.0, 2.0]


def test_a_reply_that_cannot_be_read_or_did_not_come_is_an_error_with_its_text():
    garbage, nothing = "I'd say seven.", Reply(None, "the answer was cut off at 5 tokens", raw="Well, [[")
    asked = judge(lambda text: garbage if "first" in text else nothing)
    unread, cut = asked.rate([Rating(ONE), Rating((ONE[0], {"role": "assistant", "content": "x"}))])
    assert (unread.value, unread.raw) == (None, garbage) and "has no rating" in unread.error
    assert (cut.value, cut.raw, cut.error) == (None, "Well, [[", "the answer was cut off at 5 tokens")


def test_equal_questions_of_a_batch_are_asked_once():
    asked = judge("[[5]]")
    assert [v.value for v in asked.rate([Rating(ONE), Rating(TWO), Rating(ONE)])] == [5, 5, 5]
    assert len(asked._asked) == 2


def test_what_could_be_read_is_never_asked_again_and_what_could_not_is(tmp_path):
    first = judge(lambda text: "[[5]]" if "second" in text else "no idea").at(tmp_path)
    assert [v.value for v in first.rate([Rating(ONE), Rating(TWO)])] == [None, 5]
    again = judge("[[6]]").at(tmp_path)
    assert [v.value for v in again.rate([Rating(ONE), Rating(TWO)])] == [6, 5]
    assert len(again._asked) == 1
    third = judge("[[7]]").at(tmp_path)
    assert [v.value for v in third.rate([Rating(ONE), Rating(TWO)])] == [6, 5]
    assert third._asked == []


def test_replies_are_kept_by_who_was_asked_and_all_that_was_sent(tmp_path):
    prompts = write_prompts(tmp_path / "p.jsonl")
    judge("[[5]]").at(tmp_path).rate([Rating(ONE)])
    for other, request in ((judge("[[6]]", mt_bench_prompts=prompts), Rating(ONE)), (judge("[[6]]"), Rating(TWO))):
        assert other.at(tmp_path).rate([request])[0].value == 6
    moved = prompts.rename(tmp_path / "moved.jsonl")
    assert judge("[[7]]", mt_bench_prompts=moved).at(tmp_path).rate([Rating(ONE)])[0].value == 6


def test_a_kept_reply_that_was_damaged_is_asked_for_again(tmp_path):
    judge("[[5]]").at(tmp_path).rate([Rating(ONE)])
    path = tmp_path / "replies.jsonl"
    path.write_text(path.read_text().replace("[[5]]", "[[x]]"))
    assert judge("[[6]]").at(tmp_path).rate([Rating(ONE)])[0].value == 6
    assert judge("[[7]]").at(tmp_path).rate([Rating(ONE)])[0].value == 6
