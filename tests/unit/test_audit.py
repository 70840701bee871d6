"""The audit of a DSPA artifact, part by part, on tiny random models."""

import json
import math

import pytest
import torch

from dspa.audit.audit import AuditSettings, audit, rank_latents
from dspa.audit.command import to_csv, to_json
from dspa.audit.explain import category_counts, explain
from dspa.audit.page import to_markdown
from dspa.audit.scan import KINDS, Measurement, read_corpus, residual_batches
from dspa.audit.snippets import Snippet, bracketed, top_tokens
from dspa.method import DSPA
from harness.compute import Meter
from harness.judging.prompted import Reply
from tests.conftest import make_tokenizer


@pytest.fixture(scope="module")
def artifact(tiny_base, sae_refs, triples):
    base = tiny_base()
    method = DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], gate="strict", min_support=2, k_prompt=4, k_diff=3)
    return method.fit(base, triples, meter=Meter(base.model), seed=0)


@pytest.fixture(scope="module")
def texts_file(triples, tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "triples.jsonl"
    rows = [{"prompt": list(t.prompt), "chosen": t.chosen, "rejected": t.rejected} for t in triples]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def corpus(artifact, texts_file):
    return read_corpus(texts_file, artifact)


def test_densities_and_variance_equal_those_of_one_full_forward_per_text(artifact, corpus):
    sae = artifact.intervention.saes[1]
    measured = Measurement(sae, len(KINDS))
    for batch in residual_batches(artifact, corpus.texts, {sae.layer}):
        measured.add(batch)
    active, tokens, residuals = torch.zeros(len(KINDS), sae.d_sae), [0] * len(KINDS), []
    for text in corpus.texts:
        with torch.no_grad():
            hidden = artifact.model(torch.tensor([text.ids]), output_hidden_states=True).hidden_states[sae.layer + 1][0]
        for position, kind in enumerate(text.kinds):
            if kind >= 0:
                tokens[kind] += 1
                active[kind] += (sae.sae.encode(hidden[position]) > 0).float()
                residuals.append(hidden[position])
    assert measured.tokens.tolist() == tokens
    torch.testing.assert_close(measured.active.float(), active)
    x = torch.stack(residuals).double()
    error = (x - sae.sae.decode(sae.sae.encode(x.float())).double()).pow(2).sum()
    assert measured.explained_variance == pytest.approx(float(1 - error / (x - x.mean(0)).pow(2).sum()), abs=1e-4)
    assert measured.l0 == pytest.approx(float(active.sum()) / sum(tokens))


def test_the_ranking_takes_the_ends_of_the_column_sums_and_live_latents_at_random():
    sums = torch.tensor([0.0, -3.0, 2.0, -1.0, 5.0, 2.0])
    live = torch.tensor([True, False, True, True, False, True])
    ranking = rank_latents(sums, live, 2, seed=1)
    assert (ranking["ablate"], ranking["augment"]) == ([1, 3], [4, 2])
    assert set(ranking["random"]) <= {0, 2, 3, 5} and len(ranking["random"]) == 2
    assert ranking == rank_latents(sums, live, 2, seed=1)
    assert rank_latents(sums, live, 6, seed=1)["ablate"] == [1, 3]  # never one whose sum is not below 0


def test_neighbouring_active_tokens_share_brackets_and_white_space_stays_outside():
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("w1 w2 w3 w4", add_special_tokens=False)
    assert bracketed(tokenizer, ids, [False, True, True, False]) == "w1 [[w2 w3]] w4"
    assert bracketed(tokenizer, ids, [True, False, False, True]) == "[[w1]] w2 w3 [[w4]]"
    assert bracketed(tokenizer, ids, [False] * 4) == "w1 w2 w3 w4"


def test_a_latent_is_named_by_the_tokens_it_fires_on_most_strongly():
    found = [Snippet("", token, 1.0, "text") for token in ("a", "b", "b", "c", "d", "c", "b")]
    assert top_tokens(found) == ["b", "c", "a"]


def test_snippets_are_the_strongest_places_of_each_latent(artifact, corpus):
    found = audit(artifact, corpus, AuditSettings(top=5, snippets=3, examples=2, generate=4, max_new_tokens=4))
    sae = artifact.intervention.saes[1]
    strongest = torch.zeros(sae.d_sae)
    for batch in residual_batches(artifact, corpus.texts, {sae.layer}):
        values = sae.encode(batch.residual[sae.layer])[batch.kind >= 0]
        strongest = torch.maximum(strongest, values.amax(0))
    for latent in set().union(*found.ranking.values()):
        shown = found.snippets[latent]
        assert len(shown) <= 3 and len({s.text for s in shown}) == len(shown)
        assert shown[0].activation == pytest.approx(float(strongest[latent]), rel=1e-4)
        assert [s.activation for s in shown] == sorted((s.activation for s in shown), reverse=True)
        assert all("[[" in s.text for s in shown)


def test_what_is_reported_for_prompts_is_what_the_steering_selects_and_edits(artifact, corpus):
    found = audit(artifact, corpus, AuditSettings(top=5, snippets=1, examples=2, generate=6, max_new_tokens=5))
    for example in found.conditionality.examples:
        row = corpus.prompts.index(example.prompt)
        assert {s.latent for s in example.selected} == found.conditionality.ablated[row]
        assert all(s.score < 0 and s.interval[0] <= s.interval[1] for s in example.selected)
    assert found.conditionality.figures["jaccard"] <= 1
    assert found.edited.prompts == 6 and found.edited.tokens <= 30
    selected = set().union(*found.conditionality.ablated)
    assert set(found.edited.edits.nonzero()[:, 0].tolist()) <= selected


def test_the_files_hold_the_same_features_as_the_page_and_no_nan(artifact, corpus):
    found = audit(artifact, corpus, AuditSettings(top=5, snippets=2, examples=1, generate=2, max_new_tokens=3))
    data = json.loads(to_json(found), parse_constant=lambda name: pytest.fail(name))
    assert {f["feature"] for f in data["features"]} >= set(set().union(*found.ranking.values()))
    lines = to_csv(found).splitlines()
    assert len(lines) == 1 + sum(map(len, found.ranking.values()))
    page = to_markdown(found, "tiny", "triples.jsonl", None)
    assert "No judge was given" in page and "## Categories" not in page
    assert all(f"#### {latent}" in page for latent in set().union(*found.ranking.values()))


class Judge:
    """Answers by script: what the first and the second prompt get, for each request in turn."""

    def __init__(self, *rounds):
        self.rounds, self.asked = list(rounds), []

    def ask_all(self, conversations):
        self.asked.append(list(conversations))
        return self.rounds.pop(0)[: len(conversations)]


def test_answers_that_cannot_be_read_are_named_and_never_guessed():
    shown = {i: [Snippet("a [[b]]", "b", 1.0, "text")] for i in range(5)} | {9: []}
    good = Reply('Sure: {"reliable": true, "explanation": "b words", "evidence": ["b"]}', None, 5, 5)
    first = [good, good, good, Reply("it is about b"), Reply(None, "the judge was away")]
    second = [
        Reply('<think>{"category": "Content"}</think> {"category": "Safety"}'),
        Reply('{"category": "Weather"}'),
        Reply('```json\n{"category": "Structure"}\n```'),
    ]
    judge = Judge(first, second)
    found, spent = explain(judge.ask_all, shown)
    assert [found[i].category for i in (0, 1, 2, 3, 4, 9)] == ["Safety", None, "Structure", None, None, None]
    assert found[1].explanation == "b words" and "category" in found[1].error
    assert "no JSON object" in found[3].error and "away" in found[4].error and "nowhere" in found[9].error
    assert spent == 30
    assert "1. (1.00) a [[b]]" in judge.asked[0][0][1]["content"]
    counts = category_counts(found, {"ablate": [0, 1, 2], "augment": [3], "random": [4, 9]})
    assert counts["Content"]["ablate"] == 1  # Safety counts as Content
    assert counts["not classified"] == {"ablate": 1, "augment": 1, "random": 2}


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.txt", "\n \n", "is empty"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", '{"text": "w1"}\n{"text": ""}\n', r"a\.jsonl:2: needs a non-empty 'text'"),
        ("a.jsonl", '{"prompt": "w1", "chosen": "w2"}\n', r"a\.jsonl:1: missing key 'rejected'"),
        ("a.jsonl", '{"prompt": "w1", "chosen": "w2", "rejected": "' + "w3 " * 300 + '"}', "more than"),
    ],
)
def test_texts_that_cannot_be_used_are_refused_by_file_and_line(tmp_path, artifact, name, content, error):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=error):
        read_corpus(tmp_path / name, artifact)


def test_plain_texts_are_measured_without_prompts_and_long_ones_in_windows(tmp_path, artifact):
    (tmp_path / "a.txt").write_text("w1 w2 w3\n\n" + "w4 " * 300 + "\n")
    corpus = read_corpus(tmp_path / "a.txt", artifact)
    assert [len(t.ids) for t in corpus.texts] == [4, 256, 46] and corpus.prompts == ()
    found = audit(artifact, corpus, AuditSettings(top=3, snippets=1))
    assert found.conditionality is None and found.edited is None
    assert math.isclose(float(found.output.tokens.sum()), 303)
    assert "nothing was conditioned on" in to_markdown(found, "tiny", "a.txt", None)


def test_another_methods_artifact_cannot_be_audited(tiny_base, corpus):
    with pytest.raises(ValueError, match="only DSPA artifacts"):
        audit(tiny_base(), corpus, AuditSettings())
