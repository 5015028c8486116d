"""Files from elsewhere, read as data: nothing in them is executed."""
