"""Where samples come from: arrays, files, folders, images."""
