"""Several processes: joining them, what is in force, checkpoints, answers on all ranks."""
