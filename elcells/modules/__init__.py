"""Images of whole modules, cut into their cells."""
