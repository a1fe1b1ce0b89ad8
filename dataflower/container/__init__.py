"""The child process that runs user code, and the fork server that makes it."""
