"""Where records go: metrics.jsonl, Weights & Biases, and progress bars."""
