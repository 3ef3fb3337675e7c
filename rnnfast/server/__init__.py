"""The server of the Open Inference Protocol (KServe V2): models over HTTP, gRPC and WebSockets."""
