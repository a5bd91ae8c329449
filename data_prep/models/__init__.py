"""Models that answer the stages' questions: one protocol, several backends, and the caller that pays for each reply once."""
