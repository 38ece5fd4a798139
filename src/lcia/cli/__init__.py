"""lcia.cli."""
