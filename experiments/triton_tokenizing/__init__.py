"""Where texts become tokens: in the gateway, or inside Triton."""
