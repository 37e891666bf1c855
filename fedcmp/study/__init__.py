"""Fair comparison of methods: equal tuning budgets, several seeds, resumable runs, statistics and tables."""

from fedcmp.study.asked import Request, Study, again, ask
from fedcmp.study.compare import Compared, compare
from fedcmp.study.place import Place
from fedcmp.study.runner import ComparisonEnded

__all__ = ["Compared", "ComparisonEnded", "Place", "Request", "Study", "again", "ask", "compare"]
