"""The four-stage synthesis of tool-interaction trajectories."""
