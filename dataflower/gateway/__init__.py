"""The front door: gRPC services over `host.api.HostApi`, and the Python client."""
