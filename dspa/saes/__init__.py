"""Sparse autoencoders on the residual stream: sae.py loads them and says whether they were made for the base.

encoder.py is their arithmetic, full and restricted to a few latents. The rest adapts one to a fine-tuned model:
training.py (units, sparsity, calibration), quality.py (the texts, how well it describes them), finetune.py over them.
"""
