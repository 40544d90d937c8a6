"""Where models run: in this process, or on a Triton server."""
