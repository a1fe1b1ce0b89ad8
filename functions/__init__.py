"""Functions of the shipped workflows: short, made to be read and copied. `assets` says where their models lie."""
