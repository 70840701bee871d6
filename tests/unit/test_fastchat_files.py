"""FastChat's qa_browser shows our judge's words beside our answers."""

import sys
from types import ModuleType
from unittest.mock import MagicMock

import pytest

from harness.evaluators.fastchat import files as fastchat
from harness.evaluators.fastchat.files import ModelAnswer
from tasks.mt_bench import MTBench
from tests.unit.scripted import ScriptedJudge, ScriptedModel
from tests.unit.test_mt_bench import echo, run, write_questions

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # FastChat leaves closing to chance
NAME = "scripted-ffffffffffff"


@pytest.fixture
def files(tmp_path):
    """A benchmark's folder with judgments of both kinds, at the place where qa_browser looks."""
    folder = tmp_path / "data" / "mt_bench"
    references, baseline = tmp_path / "references.jsonl", tmp_path / "rival.jsonl"
    fastchat.write_answers(references, [ModelAnswer(111, "a", "gpt-4", ("4", "6"), 0.0)])
    fastchat.write_answers(baseline, [ModelAnswer(i, "b", "rival", ("one", "two"), 0.0) for i in (81, 111, 141)])
    benchmark = MTBench(
        questions=write_questions(tmp_path / "question.jsonl"),
        references=references,
        modes=("single", "pairwise-baseline"),
        baseline=baseline,
    )
    judge = ScriptedJudge(rate=lambda r: float(len(r.conversation)), compare=lambda r: 1.5)
    run(benchmark, ScriptedModel(echo), judge, folder)
    return folder


@pytest.fixture
def browser(monkeypatch, files):
    """qa_browser after its own loading, without a page: gradio is not one of our dependencies."""
    import fastchat.llm_judge.common as common

    gradio = ModuleType("gradio")
    monkeypatch.setattr(gradio, "__getattr__", lambda name: MagicMock(), raising=False)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.delitem(sys.modules, "fastchat.llm_judge.qa_browser", raising=False)
    for name in ("load_single_model_judgments", "load_pairwise_model_judgments"):
        monkeypatch.setattr(common, name, getattr(common, name))  # comes back when the test is over

    def load(*, mended=True):
        from harness.evaluators.fastchat import mend_browser

        if mended:
            mend_browser()
        import fastchat.llm_judge.qa_browser as page

        page.questions = page.load_questions(str(files / "question.jsonl"), None, None)
        page.model_answers = page.load_model_answers(str(files / "model_answer"))
        folder = files / "model_judgment"
        single = page.load_single_model_judgments(str(folder / "gpt-4_single.jsonl"))
        pair = page.load_pairwise_model_judgments(str(folder / "gpt-4_pair.jsonl"))
        page.model_judgments_normal_single = page.model_judgments_math_single = single
        page.model_judgments_normal_pairwise = page.model_judgments_math_pairwise = pair
        page.build_question_selector_map()
        return page

    yield load
    sys.modules.pop("fastchat.llm_judge.qa_browser", None)


def choices(page):
    return {question["question_id"]: label for label, question in page.question_selector_map.items()}


def test_single_answers_are_shown_with_their_judgments(browser):
    page = browser()
    for question_id, label in choices(page).items():  # 111 was judged by reference, the others were not
        shown = page.display_single_answer(label, NAME, None)
        assert "answer 2 to" in shown[3]
        assert f"**A**: {NAME}, **Score**: 2.0" in shown[-2], question_id
        assert "**Score**: 4.0" in shown[-1]
        assert "**Judgment**: [[4.0]]" in shown[-1]


def test_pairs_are_shown_with_both_games(browser):
    page = browser()
    for label in choices(page).values():
        shown = page.display_pairwise_answer(label, NAME, "rival", None)
        assert shown[2] == "##### Assistant B\none"
        for explanation in shown[-2:]:
            assert explanation.count("**Judgment**: [[1.5]]") == 2


def test_a_category_that_fastchat_judges_by_reference_may_have_been_judged_without(browser, files):
    path = files / "model_judgment" / "scripted-v1_single.jsonl"
    path.write_text(path.read_text().replace("single-math-v1", "single-v1"))
    page = browser()
    assert "**Score**: 4.0" in page.display_single_answer(choices(page)[111], NAME, None)[-1]


def test_without_pairs_the_browser_says_that_there_are_none(browser, files):
    (files / "model_judgment" / "scripted-v1_pair.jsonl").unlink()
    page = browser()
    assert page.display_pairwise_answer(choices(page)[81], NAME, "rival", None)[-1].endswith("N/A")


def test_several_judges_are_refused(browser, files):
    (files / "model_judgment" / "other_single.jsonl").write_text("")
    with pytest.raises(ValueError, match="judgments of several judges; keep one of"):
        browser()


def test_fastchats_own_loading_knows_one_judge_only(browser, files):
    """Why it has to be mended; if this fails, FastChat has learnt it."""
    for mode in ("single", "pair"):
        (files / "model_judgment" / f"scripted-v1_{mode}.jsonl").rename(
            files / "model_judgment" / f"gpt-4_{mode}.jsonl"
        )
    page = browser(mended=False)
    with pytest.raises(KeyError, match="gpt-4"):
        page.display_single_answer(choices(page)[81], NAME, None)
