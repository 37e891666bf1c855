"""What is wrong with this machine, environment and config, and what to do about it."""

from fedcmp.doctor.examine import examine

__all__ = ["examine"]
