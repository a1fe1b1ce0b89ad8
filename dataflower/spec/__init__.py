"""What a workflow is: its data types, its file format, its checks. Pure: no I/O."""
