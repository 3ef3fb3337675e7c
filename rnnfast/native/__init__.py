"""The compiled core: the time loop, plans, native programs, gradients, BLAS and threads. The GIL ends here."""
