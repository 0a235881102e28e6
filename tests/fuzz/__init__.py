"""Hostile input for all that reads text or messages, made by a seed: any can be made again."""
