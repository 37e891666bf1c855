"""Prints the lines of code by room, of tests, and the words of the docs: ``python launch/size.py``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Counts what is in the checkout, tracked or not."""
    lines: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path in sorted((ROOT / "fedcmp").rglob("*.py")):
        parts = path.relative_to(ROOT / "fedcmp").parts
        room = parts[0] if len(parts) > 1 else "(files of fedcmp/)"
        lines[room] += _num_lines(path)
        files[room] += 1
    for room, count in lines.most_common():
        print(f"{room:<20} {count:>7,} lines {files[room]:>4} files")
    print(f"{'fedcmp/':<20} {lines.total():>7,} lines {files.total():>4} files")
    tests = list((ROOT / "tests").rglob("*.py"))
    print(f"{'tests/':<20} {sum(map(_num_lines, tests)):>7,} lines {len(tests):>4} files")
    docs = list((ROOT / "docs").rglob("*.md"))
    print(f"{'docs/':<20} {sum(len(page.read_text().split()) for page in docs):>7,} words {len(docs):>4} files")


def _num_lines(path: Path) -> int:
    return path.read_text().count("\n")


if __name__ == "__main__":
    main()
