"""Scripts to run by hand; nothing in the package imports them."""
