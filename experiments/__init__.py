"""Studies and benchmarks, each with its results; imported by nothing else."""
