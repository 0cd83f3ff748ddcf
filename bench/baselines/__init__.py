"""What the kernels of this library are measured against, written with the same tools and the same care."""
