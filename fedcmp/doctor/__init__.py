"""What is wrong with this machine, environment and config, and what to do about it."""

from fedcmp.doctor.checks import Finding, examine

__all__ = ["Finding", "examine"]
