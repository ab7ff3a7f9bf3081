"""Offline: interactions in, a certified bundle out."""
