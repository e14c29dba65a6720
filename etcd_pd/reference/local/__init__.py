"""Child processes of one machine: commands in; servers that answer, and end with their parent, out."""
