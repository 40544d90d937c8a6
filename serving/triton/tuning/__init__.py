"""`rankyard tune triton`: which scheduling lets a Triton server answer the most within a limit of p99."""
