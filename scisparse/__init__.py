"""Sparse layers for scientific machine learning."""
