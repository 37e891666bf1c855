"""Clients that are institutions: the same rounds over machines that share messages only. See docs/sites.md."""
