"""Parts of ``bench/gpu_run.py``, one for each thing that it measures.

Most import flashlla and its kernels, so ``tree.make_importable`` comes before them.
"""
