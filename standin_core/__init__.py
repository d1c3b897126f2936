"""The engine. Methods stand side by side, and import nothing of one another; what they share lies above them::

    photo -> face -> reference -> [a method's folder] -> sampler -> report

``errors``, ``words``, ``contracts``, ``checks``, ``files``, ``weights`` and ``folders`` are for all. ``person`` keeps
what is made of photos, for every method. ``latents``, ``controls``, ``guidance``, ``attention``, ``rope``, ``joint``
and ``runs`` are what methods are made of; ``wan`` is the one file that knows the parts of ComfyUI's Wan. ``stand_in``,
``concat_id`` and ``id_animator`` are methods; ``face_swap``, ``evaluation`` and ``train`` are ways beside the main one.
docs/architecture.md has the whole.
"""
__version__ = "0.1.0"  # of the pack, as in pyproject.toml
