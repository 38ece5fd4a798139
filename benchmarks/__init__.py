"""Measurements of lcia."""
