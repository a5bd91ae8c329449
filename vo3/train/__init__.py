"""Training: losses, optimisers, data on its way to the device, and the loops."""
