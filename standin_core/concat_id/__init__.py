"""The Concat-ID method: a reference image runs through the model as one more latent frame of the video."""
