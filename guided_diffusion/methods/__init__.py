"""Methods: one paper a file, each supplying one seam of the package."""
