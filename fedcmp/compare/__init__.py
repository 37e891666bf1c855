"""Fair comparison of methods: equal tuning budgets, several seeds, resumable runs, statistics and tables."""

from fedcmp.compare.compare import Compared, compare
from fedcmp.compare.folder import Place
from fedcmp.compare.spec import Request, Study, again, ask
from fedcmp.compare.workers import ComparisonEnded

__all__ = ["Compared", "ComparisonEnded", "Place", "Request", "Study", "again", "ask", "compare"]
