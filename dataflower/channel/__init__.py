"""How bytes move inside a host: links between processes, arenas of shared memory, and typed views of them."""
