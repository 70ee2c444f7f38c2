"""Where videos come from. A source lists them; it decodes nothing."""
