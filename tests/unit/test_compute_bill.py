"""FLOPs by formula and the paper's own figures."""

import pytest

from harness.compute.bill import forward_flops, paper_flops, train_flops


def test_two_p_a_forward_token_and_six_p_a_training_token() -> None:
    assert forward_flops(7, 11) == 2 * 7 * 11
    assert train_flops(7, 11) == 3 * forward_flops(7, 11)


@pytest.mark.parametrize("n_triples", [1, 100, 300, 22_500])
def test_ratio_of_rahf_scit_to_dspa_is_the_papers_for_any_number_of_triples(n_triples: int) -> None:
    assert paper_flops("dspa", n_triples) == 8e13 * n_triples
    assert round(paper_flops("rahf_scit", n_triples) / paper_flops("dspa", n_triples), 4) == 4.4728


def test_rahf_scit_by_hand() -> None:
    assert paper_flops("rahf_scit", 1) == pytest.approx(294_912e9 + 62_914.56e9, rel=1e-12)


def test_a_method_without_a_figure_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(ValueError, match=r"'dpo'.*dspa, rahf_scit"):
        paper_flops("dpo", 100)


def test_a_negative_number_of_triples_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        paper_flops("dspa", -1)
