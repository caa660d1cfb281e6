"""What kernels compute tile by tile, whatever compiles them."""
