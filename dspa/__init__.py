"""DSPA: Dynamic SAE Steering for Preference Alignment (arXiv 2603.21461).

saes/      SAEs: loading, checks, arithmetic, fine-tuning
offline    density.py (what fires on prompts and answers) or attribution.py (what that does to the preference, by
           gradient) -> map/ (the conditional-difference map)
online     steering.py (the prompt's latent sets, the change of latents, the intervention)
method.py ties both into an alignment method; diagnostics.py says how conditional it was and what it edited.

Tools around it: audit/ (what the latents are), perf/ (what steering and fitting cost); commands.py are the commands.

Nothing is imported here, so that dspa.commands loads without torch.
"""
