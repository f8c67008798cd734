"""Networks as functions from images to probabilities, without the training code."""
