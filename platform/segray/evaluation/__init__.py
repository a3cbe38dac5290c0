"""Evaluation of models: counts, scores and reports.

Import order: report, evaluate, results, compare and slices, counter, metrics.
"""
