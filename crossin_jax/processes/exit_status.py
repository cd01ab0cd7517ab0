"""Exit statuses of every command."""

DONE = 0
FAILED = 1
USAGE = 2
RESTART = 75  # interrupted, progress saved: run the same command again (EX_TEMPFAIL of sysexits.h)
