"""From videos to what a training reads.

``sources`` are the videos with their captions. ``prepare`` reads each once (``video``), cuts it into clips with
reference photos (``photos``) and notes in a ``manifest`` what was kept, and what was ``dropped`` and why. ``pairs`` may
take a clip's photos from other videos. ``encoders`` turn pixels and captions into latents and text embeddings, which
``shards`` keep on the disk. ``dataset`` does all that in one call.
"""
