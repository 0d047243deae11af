"""Prompt packs `easy-vqa` and `hub-vqa`: questions about images."""
