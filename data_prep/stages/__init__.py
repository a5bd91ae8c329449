"""The stages: each takes a record, asks a model, applies its own acceptance rules, and returns the record with its output or its rejection."""
