"""What can be said of a process, in one word."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["alive", "ended", "gone", "unknown"]
"""What is seen of a process.

- alive: it may run its own code again
- ended: it never will; it may exist for long, as a process that is being taken apart, or as a zombie
- gone: there is no such process any more; another one may have its pid
- unknown: it exists, as far as a signal can tell, but cannot be looked at
"""
