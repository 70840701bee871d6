"""Answers to held-out prompts: the judge's rating, VADER's tone, and which of them are broken."""

import json
import sys
from importlib import metadata

import pytest
from pydantic import ValidationError

from harness.data.triples import load_triples
from tasks.answers import Answers
from tasks.repetition import repetition
from tasks.tone import agreement, tone
from tests.unit.scripted import ScriptedJudge, ScriptedModel

TURNS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "How are you?"},
]
LOOP = "the cat sat on the mat and " * 6


@pytest.fixture
def lexicon(monkeypatch):
    """The package's interface with two words in it, so that no test here needs the package."""

    class Analyser:
        def polarity_scores(self, text):
            words = text.lower().split()
            return {"compound": 0.5 * ("good" in words) - 0.5 * ("bad" in words)}

    version = metadata.version
    monkeypatch.setattr("tasks.tone._analyser", Analyser)
    monkeypatch.setattr("tasks.tone.metadata.version", lambda name: "3" if name == "vaderSentiment" else version(name))


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def prompts(tmp_path):
    rows = [{"prompt": "Say something"}, {"prompt": TURNS}, {"prompt": "Say something"}, {"prompt": "Be quiet"}]
    return written(tmp_path / "prompts.jsonl", rows)


@pytest.fixture
def triples(tmp_path):
    pairs = [("A", "a good one", "a bad one"), ("A", "good", "neutral"), ("B", "good", "bad"), ("C", "one", "two")]
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs]
    return written(tmp_path / "triples.jsonl", rows)


def run(benchmark, reply, judge=None):
    return list(benchmark.run(ScriptedModel(reply), judge=judge, seed=0))


@pytest.mark.usefixtures("lexicon")
def test_each_different_prompt_is_answered_once_and_measured_three_times(prompts):
    judge = ScriptedJudge(rate=lambda asked: float(len(asked.conversation)))
    says = {"Say something": "a good day", "How are you?": LOOP, "Be quiet": " ... "}
    benchmark = Answers(path=prompts, tone="positive")
    benchmark.check()
    records = run(benchmark, lambda c: says[c[-1]["content"]], judge)
    assert [(r.metric, r.item, r.value) for r in records] == [
        ("answer_rating", "1", 2.0),
        ("answer_rating", "2", 4.0),
        ("answer_rating", "4", 2.0),
        ("answer_tone", "1", 0.5),
        ("broken_answers", "1", 0.0),
        ("answer_tone", "2", 0.0),
        ("broken_answers", "2", 100.0),
        ("answer_tone", "4", 0.0),
        ("broken_answers", "4", 100.0),
    ]
    assert [m.name for m in benchmark.metrics] == ["answer_rating", "answer_tone", "broken_answers"]
    assert judge.asked[0].conversation[-1] == {"role": "assistant", "content": "a good day"}
    assert len({r.cluster for r in records}) == 3
    assert benchmark.prompts() == ["Say something", "Hello", "How are you?", "Be quiet"]


def test_without_rating_no_judge_is_asked_and_without_tone_no_package_is_needed(prompts, monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    benchmark = Answers(path=prompts, rating=False, limit=1)
    benchmark.check()
    assert not benchmark.needs_judge
    assert not benchmark.asks
    assert [(r.metric, r.value) for r in run(benchmark, lambda _: "fine")] == [("broken_answers", 0.0)]
    assert Answers(path=prompts).needs_judge
    assert Answers(path=prompts).asks == {"rate"}
    with pytest.raises(ValueError, match="needs a judge for its ratings"):
        run(Answers(path=prompts), lambda _: "fine")


def test_a_prompt_that_cannot_be_answered_fails_in_every_metric(prompts):
    def reply(conversation):
        raise ValueError("does not fit the context")

    records = run(Answers(path=prompts, limit=1), reply, ScriptedJudge(rate=lambda _: 5.0))
    assert [(r.metric, r.value, r.error) for r in records] == [
        (metric, None, "no answer: does not fit the context") for metric in ("answer_rating", "broken_answers")
    ]


def test_a_second_judge_makes_the_ratings_alone(prompts):
    judge = ScriptedJudge(rate=lambda _: None)
    records = list(Answers(path=prompts).judge_again(ScriptedModel(lambda _: "x"), judge=judge, seed=0))
    assert {(r.metric, r.error) for r in records} == {("answer_rating", "cannot be parsed")}
    assert len(records) == 3


@pytest.mark.usefixtures("lexicon")
def test_the_suite_says_which_tone_is_the_better_one(prompts):
    (_, positive, _), (_, negative, _) = (Answers(path=prompts, tone=w).metrics for w in ("positive", "negative"))
    assert (positive.higher_is_better, negative.higher_is_better) == (True, False)
    with pytest.raises(ValidationError, match="positive"):
        Answers(path=prompts, tone="nice")


@pytest.mark.usefixtures("lexicon")
def test_of_triples_the_report_says_how_far_tone_agrees_with_the_labels(triples):
    found = agreement(load_triples(triples))
    assert (found.triples, found.chosen, found.rejected, found.equal) == (4, 75.0, 0.0, 25.0)
    assert (found.share, found.low) == (100.0, 100.0)
    assert found.means == pytest.approx((0.375, -0.25))
    benchmark = Answers(path=triples, tone="positive", rating=False)
    *said, note = benchmark.notes
    assert said[1] == "Tone is the compound score of VADER 3, a lexicon's and no judge's."
    assert "chosen answer the higher tone in 75 %, the rejected one in 0 % and both the same in 25 %" in note
    assert "a more positive tone is some evidence of the preference, and no more than that" in note
    *_, against = Answers(path=triples, tone="negative", rating=False).notes
    assert "the negative one is chosen in 0.0 % [0.0, 0.0]: here a more negative tone speaks against" in against
    assert [r.raw["chosen"] for r in run(benchmark, lambda _: "good") if r.metric == "answer_tone"] == [
        "a good one", "good", "one",
    ]  # fmt: skip
    assert benchmark.metrics[0].sample.reference == "chosen"


@pytest.mark.usefixtures("lexicon")
def test_labels_that_tone_tells_nothing_of_are_said_to_be_such(tmp_path):
    pairs = [(f"p{i}", *(("good", "bad") if i % 2 else ("bad", "good"))) for i in range(20)]
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs]
    *_, note = Answers(path=written(tmp_path / "t.jsonl", rows), tone="positive", rating=False).notes
    assert "here tone says nothing about the preference" in note


@pytest.mark.usefixtures("lexicon")
def test_prompts_without_labels_have_nothing_that_tone_could_agree_with(prompts):
    assert len(Answers(path=prompts, tone="positive").notes) == 2
    assert len(Answers(path=prompts).notes) == 1
    assert Answers(path=prompts).metrics[0].sample.reference is None


def test_a_missing_package_is_refused_with_what_to_install(prompts, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("tasks.tone.metadata.version", missing)
    with pytest.raises(ValueError, match=r"not installed; install it: pip install 'dspa-bench\[tone\]'"):
        Answers(path=prompts, tone="positive").check()


def test_a_bad_line_is_refused_by_its_number(tmp_path):
    path = written(tmp_path / "p.jsonl", [{"prompt": "fine"}, {"question": "?"}])
    with pytest.raises(ValueError, match=r"p\.jsonl:2: 'prompt' must be a string"):
        Answers(path=path).check()


def test_repetition_is_the_share_of_four_words_that_were_there_before():
    assert repetition("one two three") == 0.0
    assert repetition("a b c d e f g h") == 0.0
    assert repetition("a b c d A, b c d") == pytest.approx(1 / 5)
    assert repetition(LOOP) > 0.5


def test_vader_itself_orders_plain_sentences():
    pytest.importorskip("vaderSentiment.vaderSentiment", reason="needs the package vaderSentiment (extra `tone`)")
    polite, neutral, rude = map(tone, ("Thank you, that is wonderful!", "The box is on it.", "You stupid, awful fool."))
    assert rude < -0.5 < neutral < 0.5 < polite
    assert neutral == tone("") == 0.0


def test_a_prompt_that_does_not_fit_is_known_beforehand_and_left_out_when_asked(prompts):
    benchmark = Answers(path=prompts, rating=False, max_new_tokens=7)
    assert [(one.name, one.generated) for one in benchmark.items()] == [("1", 7), ("2", 7), ("4", 7)]
    assert benchmark.items()[2].place == "prompts.jsonl, prompt 4"
    fewer = benchmark.without(frozenset({"2"}))
    assert fewer.prompts() == ["Say something", "Be quiet"]
    assert {record.item for record in run(fewer, lambda _: "yes")} == {"1", "4"}
    assert {record.item for record in run(benchmark, lambda _: "yes")} == {"1", "2", "4"}
