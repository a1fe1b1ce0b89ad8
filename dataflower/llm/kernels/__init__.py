"""The decode step in C++, compiled on the machine it runs on, where there is a compiler."""
