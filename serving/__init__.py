"""Answers requests: runtimes that run models, the gateway in front of them, and Triton."""
