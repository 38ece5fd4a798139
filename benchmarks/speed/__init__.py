"""How fast the parts of lcia are."""
