"""Where triplets come from: adapters for public formats, from local files, and the synthetic world."""
