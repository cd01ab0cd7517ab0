"""Evaluation across languages: answers out of text, consistency and AC3, intervals, result files
and the report.

One noun per module: `extraction` (text -> option), `consistency` (options -> figures),
`predictions` (files of model output and `crossin score`), `bootstrap` (intervals), `results`
(results.json), `tables` and `plots` (what the report shows) and `report` (report.html).
"""
