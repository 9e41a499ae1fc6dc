"""What a program costs on a chip: operations, bytes, collectives, and the time that follows from published peaks."""
