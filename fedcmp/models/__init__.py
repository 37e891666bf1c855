"""Frozen vision towers and LLMs, the projector between them, and the caption loss. Nothing here is federated."""
