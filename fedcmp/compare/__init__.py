"""Fair comparison of methods: equal tuning budgets, several seeds, resumable runs, statistics and tables."""

from fedcmp.compare.asked import Request, Study, again, ask
from fedcmp.compare.compare import Compared, compare
from fedcmp.compare.place import Place
from fedcmp.compare.runner import ComparisonEnded

__all__ = ["Compared", "ComparisonEnded", "Place", "Request", "Study", "again", "ask", "compare"]
