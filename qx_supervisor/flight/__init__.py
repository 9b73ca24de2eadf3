"""The work of one run: a state machine that decides, and is pure (`machine`)."""
