"""Public fakes and suites: what a test needs in place of clocks, containers, callers and whole hosts."""
