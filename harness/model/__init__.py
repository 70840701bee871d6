"""A model and what is added to it: loading, chat format, steering, generation, log-likelihoods, the artifact folder.

base.py chat.py       the shared base model, and how conversations become token ids
decoder.py            where the residual stream is found, and the one way to see it
intervention.py       what an edit of it is; steering.py applies one during forwards
runtime.py            what is needed to run a model: generation.py, loglikelihood.py (with prefix_cache.py)
aligned.py            an aligned model, all of the above together; artifact.py is its folder on disk
residuals.py          the residual streams of preference triples, for methods that read them
"""

from harness.completion import Completion
from harness.model.aligned import AlignedModel

__all__ = ["AlignedModel", "Completion"]
