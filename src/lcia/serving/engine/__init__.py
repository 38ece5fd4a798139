"""Continuous batching over mixed adapters: no HTTP in it, usable from Python."""
