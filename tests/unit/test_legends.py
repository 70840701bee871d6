"""Methods explain the figures that their interventions report, each figure in one way."""

from baselines import CAA, RepE, StaticSAE
from dspa.method import DSPA


def test_a_figure_of_several_methods_has_one_sentence():
    said: dict[str, set[str]] = {}
    for method in (DSPA, StaticSAE, CAA, RepE):
        for figure, sentence in method.diagnostics.items():
            said.setdefault(figure, set()).add(sentence)
    assert {figure for figure, sentences in said.items() if len(sentences) > 1} == set()
    assert set(said) >= {"jaccard", "set_size", "edited_share", "relative_step"}
