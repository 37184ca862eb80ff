"""What is the operating system's: other programs, import paths, files that reach the disk, freed
memory."""
