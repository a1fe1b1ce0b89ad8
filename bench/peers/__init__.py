"""Rivals, each in a process of its own that speaks the lines of `protocol`; they never import dataflower."""
