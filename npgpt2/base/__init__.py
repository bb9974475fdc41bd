"""What every room may use: errors, reading and writing files, options, threads, BLAS, arrays.

Nothing here knows of GPT-2 or imports another room.
"""
