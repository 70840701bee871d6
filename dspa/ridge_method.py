"""dspa_ridge: DSPA's edit with ridge scores. It is not the paper's method (docs/dspa.md, "Ridge scores")."""

from typing import ClassVar, Literal

from dspa.method import DSPA
from harness.method import register_method
from harness.model.intervention import Condition


@register_method("dspa_ridge")
class DSPARidge(DSPA):
    """DSPA whose scores are a ridge regression on everything that is active in the prompt.

    It conditions on the last user turn, in the fit and at inference. Selection, edit, token gate and scale are DSPA's,
    and so are their defaults; ``k_prompt``, ``gate``, ``percentile`` and the other options of the rows have no effect
    and are refused.
    """

    online: ClassVar[frozenset[str]] = DSPA.online - {"k_prompt"}
    condition: Condition = "last_turn"
    scores: Literal["ridge"] = "ridge"  # type: ignore[assignment]  # frozen, so narrowing is safe
