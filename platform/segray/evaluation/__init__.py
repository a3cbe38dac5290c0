"""Evaluation of models: counts, scores and reports.

Import order: report, evaluate, results and compare, counter, metrics.
"""
