"""How fast the parts are and how well they learn, beside named peers. Run by `make bench`; nothing here is a test."""
