"""Proof that the rows of a batch, or the frames of sequences, stay apart: their axis is followed node by node."""
