"""A demonstration that needs no download: a small model learns a generated world and is then aligned three ways."""
