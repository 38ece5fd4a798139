"""lcia.learner."""
