"""What every folder may use: errors, files, options, threads, BLAS, arrays, an HTML page.

Nothing here knows of GPT-2 or imports another folder.
"""
