"""What a gateway answers while its Triton server is killed."""
