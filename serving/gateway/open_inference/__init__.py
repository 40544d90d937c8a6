"""The Open Inference Protocol, over HTTP and gRPC, for every model that is served: tensors in, tensors out."""
