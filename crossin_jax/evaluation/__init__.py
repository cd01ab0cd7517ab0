"""Evaluation across languages: answers, figures with intervals, result files and reports."""
