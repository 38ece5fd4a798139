"""lcia.reports."""
