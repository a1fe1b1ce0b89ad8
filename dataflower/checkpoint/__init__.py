"""Model weights: found, fetched, checked, and mapped once per host whatever the number of functions."""
