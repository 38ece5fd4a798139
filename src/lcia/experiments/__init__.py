"""Many runs of one stream: running them, their results, and how they compare."""
