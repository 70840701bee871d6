"""The body of `finetune-sae`."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from dspa.finetune_sae import Finetuned, FinetuneSettings, finetune, save_finetuned
from dspa.sae import check_sae, load_sae
from dspa.sae_training import check_trainable
from harness.cli.artifacts import calm, model_ref
from harness.experiment.check import check_base
from harness.files import check_can_make
from harness.model import AlignedModel
from harness.preferences import load_triples
from harness.refs import SAERef

_L0_TOLERANCE = 0.05


def finetune_sae_command(
    sae_path: Path | None,
    base: str,
    triples_path: Path,
    out: Path,
    settings: FinetuneSettings,
    *,
    release: str | None,
    sae_id: str | None,
    norm_filter: float | None,
    chat: str,
    device: str,
) -> None:
    """Fine-tune an SAE, save it and print its quality before and after; arguments are checked before any work."""
    calm()
    if (sae_path is None) == (release is None) or (release is None) != (sae_id is None):
        raise ValueError("give either --sae FOLDER, or both --release and --id")
    if norm_filter is not None and norm_filter <= 1:
        raise ValueError(f"--norm-filter is a multiple of the median norm, above 1; got {norm_filter}")
    if out.exists():
        raise ValueError(f"--out {str(out)!r} exists already; SAEs are never overwritten")
    check_can_make(out)
    path = None if sae_path is None else str(sae_path)
    ref = SAERef(path=path, release=release, id=sae_id, norm_filter=norm_filter)
    model = model_ref(base, chat)
    triples = load_triples(triples_path)
    check_sae(ref, check_base(model))
    sae = load_sae(ref, device)
    check_trainable(sae)
    result = finetune(AlignedModel.from_base(model, device=device), sae, triples, settings, source=str(ref.located()))
    save_finetuned(result, out)
    _print(result, out)


def _print(result: Finetuned, out: Path) -> None:
    before, after, made = result.before, result.after, result.provenance
    table = Table("held-out text", "before", "after")
    table.add_row("L0", f"{before.l0:.2f}", f"{after.l0:.2f}")
    table.add_row("explained variance", f"{before.explained_variance:.4f}", f"{after.explained_variance:.4f}")
    table.add_row("loss with the reconstruction", f"{before.loss_sae:.4f}", f"{after.loss_sae:.4f}")
    table.add_row("loss recovered", f"{before.loss_recovered:.4f}", f"{after.loss_recovered:.4f}")
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(
        f"{before.tokens} tokens of {made['held_out_triples']} triples; loss of the base itself {before.loss:.4f}, "
        f"with zeros {before.loss_zero:.4f}"
    )
    change = after.l0 / before.l0 - 1
    if abs(change) > _L0_TOLERANCE:
        console.print(f"L0 was not held: {change:+.1%} on held-out text; try a lower --lr or fewer --tokens")
    if made["norm_filter"] is not None:
        console.print(f"its training left out tokens of large norm: name it with norm_filter: {made['norm_filter']}")
    console.print(f"{out}: {made['tokens']} tokens of {made['triples']} triples in {made['steps']} steps")
