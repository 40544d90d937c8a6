"""What tracing costs a gateway."""
