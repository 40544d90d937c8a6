"""HTTP in, answers out: requests are checked, batched across callers, run, decoded."""
