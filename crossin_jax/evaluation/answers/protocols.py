"""The names of the ways to read an answer with options."""

PROTOCOLS = ('strict', 'seaeval')  # see `extraction`
JUDGED = 'seaeval_v2'  # a judge model reads the answers, see `judging.choices`
