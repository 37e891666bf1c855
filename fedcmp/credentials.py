"""Secrets as they are seen from outside: which variables hold one, and which texts carry one. None is ever kept."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping

HOLDERS = re.compile(
    r"(?:^|_)(?:API_?KEY|ACCESS_?KEY|SECRET_?KEY|PRIVATE_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)(?:_|$)",
    re.IGNORECASE,
)
"""Names of variables that hold a secret: WANDB_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, ..."""
ELSEWHERE = re.compile(r"_(?:FILE|PATH|DIR|URL|HOST|PORT|NAME|ID)$", re.IGNORECASE)
"""Names that end so say where a secret lies, not what it is: WANDB_IDENTITY_TOKEN_FILE."""
LEAST = 8
"""Values of fewer characters are not looked for in other texts: ``true`` is no secret."""
MASK = "***"
FORMS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a password in a URL", re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")),
    ("a token in a URL", re.compile(r"(?<=[?&])(?:\w*token|\w*secret|api_?key|password)=[^&\s#]+", re.IGNORECASE)),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*")),
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{20,}")),
    ("a W&B key", re.compile(r"\bwandb_v\d+_[A-Za-z0-9_-]{20,}")),
    ("a GitHub token", re.compile(r"\b(?:gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,})")),
    ("a GitLab token", re.compile(r"\bglpat-[\w-]{16,}")),
    ("an AWS key", re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")),
    ("an API key", re.compile(r"\bsk-[A-Za-z0-9_-]{20,}")),
)
"""Forms in which secrets are written. A W&B key of the old kind, 40 hexadecimal digits, looks like a commit's hash: it
is known only where the environment has it."""


def holds_secret(name: str) -> bool:
    """Whether a variable, or a key of a config, of this name holds a secret.

    >>> holds_secret("WANDB_API_KEY"), holds_secret("WANDB_IDENTITY_TOKEN_FILE"), holds_secret("max_caption_tokens")
    (True, False, False)
    """
    return bool(HOLDERS.search(name)) and not ELSEWHERE.search(name)


def find_secret(text: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """What kind of secret a text carries, in words that do not hold it; None: it carries none that is known.

    >>> find_secret("runs/a", {}), find_secret("https://me:hunter2@host/data", {})
    (None, 'a password in a URL')
    >>> find_secret("runs/0123456789", {"MY_TOKEN": "0123456789"})
    'the value of MY_TOKEN'
    """
    for name, value in environment.items():
        if len(value) >= LEAST and value in text and holds_secret(name):
            return f"the value of {name}"
    for name in re.findall(r"\$\{?(\w+)", text):  # paths are filled in where they are used
        if holds_secret(name):
            return f"a reference to {name}"
    return next((what for what, form in FORMS if form.search(text)), None)


def mask(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with every secret in it replaced.

    >>> mask("cannot open https://me:hunter2@host/data", {})
    'cannot open https://***@host/data'
    """
    for name, value in environment.items():
        if len(value) >= LEAST and value in text and holds_secret(name):
            text = text.replace(value, MASK)
    for _, form in FORMS:
        text = form.sub(MASK, text)
    return text


class Masked(logging.Formatter):
    """What is logged, tracebacks too, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))


def log_to_stderr() -> None:
    """Warnings of this process go to standard error, masked; a program that has handlers keeps them."""
    handler = logging.StreamHandler()
    handler.setFormatter(Masked("fedcmp: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
