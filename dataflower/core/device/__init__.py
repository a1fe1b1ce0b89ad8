"""Functions that share a device and its memory: what of them is ready ahead, whose batch goes next, what makes room."""
