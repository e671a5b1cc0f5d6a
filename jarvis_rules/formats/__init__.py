"""Reading and writing the file formats: `.nemo`, checkpoints, `.ejrvs`, `.jmir`."""
