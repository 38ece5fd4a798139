"""lcia.grouping."""
