"""What a projector is worth on held-out pairs."""
