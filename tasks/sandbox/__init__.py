"""The sandbox: a planted world with a known preference, and the model, SAEs and data made from it.

`world` and `grammar` define it, `corpus` and `questions` write its texts, `oracle` judges, `build` makes the assets,
`truth` tells what is preferred.
"""
