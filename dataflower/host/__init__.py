"""The shell of one machine: processes, sockets, memory and the journal around the core that decides."""
