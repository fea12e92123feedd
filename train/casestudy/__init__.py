"""The case study: a pretrained ViT on pictures of clothes, from its weights to a page of results."""
