"""A model and what is added to it: loading, chat format, steering, generation, log-likelihoods, the artifact folder.

base.py chat.py       the shared base model, and how conversations become token ids
decoder.py            where the residual stream is found, and the one way to see it
intervention.py       what an edit of it is; steering.py applies one during forwards and holds what running takes
generation.py         answers; loglikelihood.py scores continuations (prefix_cache.py: shared prefixes once)
aligned.py            an aligned model, all of the above together; artifact.py is its folder on disk
residuals.py          the residual streams of preference triples, for methods that read them
"""

from harness.model.aligned import AlignedModel
from harness.responder import Completion

__all__ = ["AlignedModel", "Completion"]
