"""DSPA: Dynamic SAE Steering for Preference Alignment (arXiv 2603.21461).

offline   density.py (what fires on prompts and answers) -> condiff.py (the conditional-difference map)
online    select.py (the prompt's latent sets) -> edit.py (the change of latents) -> steer.py (the intervention)
method.py ties both into an alignment method; sae.py loads SAEs; diagnostics.py says how conditional it was.
"""

from dspa.condiff import ConditionalDifferenceMap, TruncatedMap
from dspa.method import DSPA
from dspa.steer import DSPASteering

__all__ = ["DSPA", "ConditionalDifferenceMap", "DSPASteering", "TruncatedMap"]
