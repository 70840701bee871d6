"""Controls of DSPA: random latents and another prompt's condition, drawn from the prompt alone."""

import torch

from dspa.controls import BANK, other_prompt, prompt_bank, random_latents
from dspa.map.sparse import SparseRows
from harness.data.triples import conversation
from harness.model.aligned import AlignedModel
from tests.unit.test_dspa import PROMPTS, fit

CONTROLS = ("random_latents", "other_prompt")


def densities(n: int, width: int = 20) -> torch.Tensor:
    draw = torch.Generator().manual_seed(n)
    return torch.rand(n, width, generator=draw) * (torch.rand(n, width, generator=draw) < 0.5)


def test_random_latents_are_as_many_as_were_selected_all_different_and_fire():
    latents = torch.tensor([[3, 7, -1, 9], [-1, -1, -1, -1], [1, 2, 3, 4]])
    fires, density = torch.tensor([11, 12, 13, 14, 15, 16]), densities(3)
    drawn = random_latents(latents, density, fires)
    assert torch.equal(drawn >= 0, latents >= 0)
    for row in drawn.tolist():
        present = [latent for latent in row if latent >= 0]
        assert set(present) <= set(fires.tolist())
        assert len(set(present)) == len(present)
    assert random_latents(latents, density, fires[:2])[2].tolist()[2:] == [-1, -1]
    order = torch.tensor([2, 0, 1])
    assert torch.equal(random_latents(latents[order], density[order], fires), drawn[order])
    assert torch.equal(random_latents(latents[2:], density[2:], fires), drawn[2:])
    many = random_latents(torch.zeros(400, 1, dtype=torch.long), densities(400), fires)
    counts = torch.bincount(many[:, 0], minlength=17)[11:]
    assert counts.min() > 35, "every candidate is drawn about as often"


def test_another_prompt_is_one_of_the_bank_and_never_the_prompt_itself():
    trained = densities(40)
    bank = prompt_bank(SparseRows.from_dense(trained), seed=3)
    assert len(bank) == 40
    rows = torch.cat([trained, densities(8)])
    others = other_prompt(rows, bank)
    assert all(any(torch.equal(other, one) for one in trained) for other in others)
    assert not any(torch.equal(other, own) for other, own in zip(others, rows, strict=True))
    assert torch.equal(other_prompt(rows[5:7], bank), others[5:7])
    assert len({tuple(other.tolist()) for other in others}) > 15
    same = SparseRows.from_dense(trained[:1])
    assert torch.equal(other_prompt(trained[:1], same), trained[:1])


def test_the_bank_is_drawn_by_the_seed_and_is_small():
    prompts = SparseRows.from_dense(densities(2 * BANK))
    one, again, other = (prompt_bank(prompts, seed) for seed in (1, 1, 2))
    assert len(one) == BANK
    assert torch.equal(one.dense(), again.dense())
    assert not torch.equal(one.dense(), other.dense())


def test_controls_answer_alike_in_every_batch_and_order_and_come_back(tiny_base, triples, sae_refs, tmp_path):
    base = tiny_base("gemma2")
    prompts = [*PROMPTS, *(conversation(f"w{i} w{i + 3}") for i in range(6))]
    plain = fit(base, triples, sae_refs)
    said = {plain.fingerprint}
    for control in CONTROLS:
        aligned = fit(base, triples, sae_refs, control=control)
        said.add(aligned.fingerprint)
        together = [c.token_ids for c in aligned.generate(prompts, max_new_tokens=8)]
        assert together != [c.token_ids for c in plain.generate(prompts, max_new_tokens=8)]
        backwards = aligned.generate(prompts[::-1], max_new_tokens=8, batch_size=3)[::-1]
        alone = [aligned.generate([p], max_new_tokens=8)[0] for p in prompts]
        assert together == [c.token_ids for c in backwards] == [c.token_ids for c in alone]
        aligned.save(tmp_path / control)
        loaded = AlignedModel.load(tmp_path / control)
        assert [c.token_ids for c in loaded.generate(prompts, max_new_tokens=8)] == together
        moved = aligned.derive(intervention=aligned.intervention.to("cpu"))
        assert moved.fingerprint == aligned.fingerprint
    assert len(said) == 3


def test_a_control_changes_the_sets_and_not_how_many(tiny_base, triples, sae_refs):
    base, mask = tiny_base("llama"), torch.ones(5, 7, dtype=torch.bool)
    residual = torch.randn(5, 7, 32, generator=torch.Generator().manual_seed(1)) * 2
    plain, random, other = (
        fit(base, triples, sae_refs, control=control, mode="both").intervention for control in (None, *CONTROLS)
    )
    chosen, drawn, theirs = (steering.select(residual, mask) for steering in (plain, random, other))
    assert torch.equal(drawn.sign, chosen.sign)
    assert torch.equal(drawn.scores, chosen.scores)
    assert not torch.equal(drawn.latents, chosen.latents)
    trained = other.bank.dense()
    assert all(any(torch.equal(row, one) for one in trained) for row in theirs.density)
    assert not torch.equal(theirs.gates, chosen.gates)


def test_the_fits_seed_draws_the_bank(tiny_base, triples, sae_refs, monkeypatch):
    from dspa.method import DSPA
    from harness.compute import Meter

    monkeypatch.setattr("dspa.controls.BANK", 5)
    method = DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], control="other_prompt")
    banks = [method.fit(tiny_base(), triples, meter=Meter(), seed=seed).intervention.bank for seed in (0, 0, 1)]
    assert [len(bank) for bank in banks] == [5, 5, 5]
    assert torch.equal(banks[0].dense(), banks[1].dense())
    assert not torch.equal(banks[0].dense(), banks[2].dense())
