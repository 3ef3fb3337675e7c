# Types of the extension module _blas.pyx, which has C functions only.
