"""What every drawing is made of: primitives, colours, places for labels; and how one becomes a file of its own."""
