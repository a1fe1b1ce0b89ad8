"""What happens next: the decisions of one host, without any I/O."""
