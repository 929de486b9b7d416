"""One offline HTML page about a run, and the tables of the documentation."""

from glass_fast.report.html import write_report

__all__ = ["write_report"]
