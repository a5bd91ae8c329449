"""Splash attention: reference, chunked XLA, TPU kernel, one API."""
