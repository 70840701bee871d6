"""Reward models as judges: the judge, the model that scores, and its training."""
