"""INSTEAD: what stands for a prediction that is not computed, and what the sampler made of it."""
