"""Whole runs: plan, train and resume them; baselines; what is made of a finished run."""
