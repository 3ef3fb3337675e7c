"""The front of a service: a Batcher gathers frames and whole sequences of many callers into batches."""
