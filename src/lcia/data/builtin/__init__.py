"""Streams that come with lcia."""
