"""The gateway's own HTTP server beside uvicorn."""
