"""One-token attention over a group-shared prefix and own suffixes."""
