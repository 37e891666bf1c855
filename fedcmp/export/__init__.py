"""A trained projector in the formats of others, and theirs as ours."""
