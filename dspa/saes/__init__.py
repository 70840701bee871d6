"""Sparse autoencoders on the residual stream: sae.py loads them, names.py says whether they were made for the base.

encoder.py is their arithmetic, full and restricted to a few latents. The rest adapts one to a fine-tuned model:
tokens.py (what it is trained on), training.py (units, sparsity, calibration), quality.py, and finetune.py over them.
"""

from dspa.saes.encoder import Encoder
from dspa.saes.sae import ResidualSAE, check_sae, load_sae, norm_multiple, sae_sizes

__all__ = ["Encoder", "ResidualSAE", "check_sae", "load_sae", "norm_multiple", "sae_sizes"]
