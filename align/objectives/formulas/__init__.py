"""What ``logic`` is made of: formulas, their truth tables and order, and closed forms."""
