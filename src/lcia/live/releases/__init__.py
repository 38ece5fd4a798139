"""Releases: which versions there are and were refused, who answers, and the canary of a new one."""
