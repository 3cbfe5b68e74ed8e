"""What a stage minimises: one objective a file, all called by one loop (`training.loop`)."""
