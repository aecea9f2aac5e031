"""A demonstration without download: a small model learns a generated world, is aligned and made to forget."""
