"""lcia: an assistant that keeps learning."""
