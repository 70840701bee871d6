"""kto: each answer alone is desirable or not, against a reference point from answers to other prompts."""

import pytest

from baselines import KTO
from baselines.kto import unpaired_rows
from harness.compute import Meter
from harness.data.triples import Triple, conversation
from tests.unit.trained import fit_checked, margin_gain


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_chosen_answers_are_preferred_more(tiny_base, triples, tmp_path, tuning):
    base, some = tiny_base("llama"), triples[:8]
    method = KTO(tuning=tuning, epochs=2, learning_rate=1e-2, batch_size=4)
    aligned, bill = fit_checked(method, base, some, tmp_path / "artifact")
    assert margin_gain(base, aligned, some) > 2
    assert bill.optimiser_steps == 4  # batch_size counts triples: 8 rows a step
    rows = unpaired_rows(base, some)
    own = 2 * sum(len(row["prompt_ids"] + row["completion_ids"]) for row in rows)
    unrelated = 2 * sum(len(row["prompt_ids"] + row["KL_completion_ids"]) for row in rows)
    assert bill.tokens == 2 * own + 2 * unrelated
    assert bill.formula_flops == bill.total_params * (6 * own + 2 * own + 2 * 2 * unrelated)


def test_the_reference_point_is_from_answers_of_the_same_kind_to_other_prompts(tiny_base):
    base = tiny_base("llama")
    triples = [Triple(conversation(f"w{i}"), f"w1{i}", f"w2{i}") for i in range(3)]
    rows = unpaired_rows(base, triples)

    def words(ids: list[int]) -> str:
        return " ".join(base.tokenizer.convert_ids_to_tokens(ids))

    assert [row["label"] for row in rows] == [True, False] * 3
    assert [words(row["completion_ids"]) for row in rows[:2]] == ["w10 end", "w20 end"]
    assert [words(row["KL_completion_ids"]) for row in rows] == [f"w{k}{i} end" for i in (1, 2, 0) for k in (1, 2)]


def test_an_unrelated_answer_that_does_not_fit_is_passed_over(tiny_base):
    base = tiny_base("llama")
    prompt, answer = conversation(" ".join(["w1"] * 200)), " ".join(["w2"] * 200)
    triples = [Triple(prompt, "w3", "w4"), Triple(conversation("w5"), answer, "w6"), Triple(prompt, "w7", "w8")]
    rows = unpaired_rows(base, triples)
    assert rows[0]["KL_completion_ids"] == rows[4]["completion_ids"]
    assert rows[1]["KL_completion_ids"] == rows[3]["completion_ids"]
    with pytest.raises(ValueError, match=r"kto: triple .* has no other triple's answer that fits the context of 256"):
        unpaired_rows(base, triples[:2])


def test_one_triple_is_too_few(tiny_base):
    base = tiny_base("llama")
    with pytest.raises(ValueError, match="give at least two triples"):
        KTO().fit(base, [Triple(conversation("w1"), "w2", "w3")], meter=Meter(base.model), seed=0)
