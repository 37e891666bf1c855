"""Fuses: the deltas of many clients to one."""
