"""HOW A PART: computing a window of a UNet or some tokens of a transformer beside cached activations."""
