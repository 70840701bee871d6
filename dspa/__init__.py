"""DSPA: Dynamic SAE Steering for Preference Alignment (arXiv 2603.21461).

SAEs      sae.py (loading, checks, model_name.py) -> encoder.py (their arithmetic, full and restricted)
offline   density.py (what fires on prompts and answers) -> condiff.py (the conditional-difference map, in sparse.py's
          rows) -> truncated.py -> shipped.py (what an artifact holds; packing.py, bootstrap.py)
online    steering.py (the prompt's latent sets, the change of latents, the intervention)
method.py ties both into an alignment method; diagnostics.py says how conditional it was and what it edited.

Tools around it: audit/ (what the latents are), finetune_sae.py (adapt an SAE to a fine-tuned model; sae_training.py,
sae_quality.py, token_stream.py), perf/ (what steering and fitting cost).
"""

from dspa.condiff import ConditionalDifferenceMap
from dspa.method import DSPA
from dspa.shipped import ShippedMap
from dspa.steering import DSPASteering
from dspa.truncated import TruncatedMap

__all__ = ["DSPA", "ConditionalDifferenceMap", "DSPASteering", "ShippedMap", "TruncatedMap"]
