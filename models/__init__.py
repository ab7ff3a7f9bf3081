"""What training and service must agree on: the bundle, its registry, how a sequence looks, and the models."""
