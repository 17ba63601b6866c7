"""Losses, each its equation, and the miners of hard negatives.

Scores are cosines; `logit_scale` is the factor on them, not its logarithm.
"""
