"""The engine. One file or folder for each stage, and data flows one way::

    photo -> face -> reference -> identity -> kv_cache -> attention -> run, sampler -> report

``contracts`` are the records handed on, ``weights`` reads adapter files, ``rope`` places the identity tokens, ``wan``
is the one file that touches ComfyUI's model. A stage imports only what stands to its left.
"""
