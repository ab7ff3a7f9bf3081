"""What training and service must agree on: the bundle, its registry, how a sequence looks, and the models."""

VERSION = "0.1.0"  # of the whole project; a bundle names the oldest one that can read it
