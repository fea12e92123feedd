"""Weights from elsewhere as supernets: timm, CLIP with class names, and the meta-networks of PRANCE's authors."""
