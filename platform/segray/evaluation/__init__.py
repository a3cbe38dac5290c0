"""Counts, scores and reports.

Order of imports: report, evaluate, results and compare, counter, metrics.
"""
