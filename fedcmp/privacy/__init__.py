"""Differential privacy of clients: bounds on what they send, noise on sums, and an account of what was released."""
