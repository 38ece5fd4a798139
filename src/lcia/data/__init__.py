"""lcia.data."""
